"""The values of expressions in a module's code, by the parts that compute them."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Sequence

from lightning_freeze.layers.forward_source.value_flow.state import FlowState, flat, is_list, join
from lightning_freeze.layers.forward_source.value_flow.values import NOTHING, Value, merged

_ARITHMETIC: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
}


class FlowExpressions(FlowState):
    """Finds the values of all expressions but calls; ``_of_`` and the name of the syntax names the method."""

    def _value(self, node: ast.AST | None) -> Value:
        if node is None:
            return NOTHING
        handler = getattr(self, f"_of_{type(node).__name__.lower()}", None)
        if handler is not None:
            value: Value = handler(node)
            return value
        return flat([self._value(child) for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr)])

    def _of_constant(self, node: ast.Constant) -> Value:
        return Value(constant=node.value) if isinstance(node.value, int | str) else NOTHING

    def _of_name(self, node: ast.Name) -> Value:
        return self._names.get(node.id, NOTHING)

    def _of_tuple(self, node: ast.Tuple | ast.List) -> Value:
        values = [self._value(part) for part in node.elts]
        if any(isinstance(part, ast.Starred) for part in node.elts):
            return flat(values)
        return Value(items=tuple(values))

    _of_list = _of_tuple

    def _of_binop(self, node: ast.BinOp) -> Value:
        left, right = self._value(node.left), self._value(node.right)
        operation = _ARITHMETIC.get(type(node.op))
        if operation is not None and isinstance(left.constant, int) and isinstance(right.constant, int):
            return Value(constant=operation(left.constant, right.constant))
        return flat([left, right])

    def _of_joinedstr(self, node: ast.JoinedStr) -> Value:
        parts = [self._value(p.value if isinstance(p, ast.FormattedValue) else p).constant for p in node.values]
        return NOTHING if None in parts else Value(constant="".join(map(str, parts)))

    def _of_dict(self, node: ast.Dict) -> Value:
        return flat([self._value(value) for value in node.values])

    def _of_namedexpr(self, node: ast.NamedExpr) -> Value:
        value = self._value(node.value)
        self._bind(node.target, value)
        return value

    def _of_ifexp(self, node: ast.IfExp) -> Value:
        known = self._known(node.test)
        self._value(node.test)
        if known is not None:
            return self._value(node.body if known else node.orelse)
        outer = self._branch
        values = []
        for arm, part in enumerate((node.body, node.orelse)):
            self._branch = (*outer, (id(node), arm))
            values.append(self._value(part))
        self._branch = outer
        return merged(values)

    def _of_lambda(self, node: ast.Lambda) -> Value:
        return self._value(node.body)

    def _of_listcomp(self, node: ast.ListComp | ast.GeneratorExp | ast.SetComp) -> Value:
        value = self._comprehension(node.generators, [node.elt])
        return Value(element=value)

    _of_generatorexp = _of_setcomp = _of_listcomp

    def _of_dictcomp(self, node: ast.DictComp) -> Value:
        return self._comprehension(node.generators, [node.value])

    def _comprehension(self, generators: Sequence[ast.comprehension], parts: Sequence[ast.expr]) -> Value:
        before = dict(self._names)
        for part in generators:
            self._bind(part.target, self._value(part.iter).iterate())
            for test in part.ifs:
                self._value(test)
        value = flat([self._value(part) for part in parts]) if len(parts) > 1 else self._value(parts[0])
        self._names = before
        return value

    def _of_attribute(self, node: ast.Attribute) -> Value:
        chain = self._scope.chain(node)
        if chain is not None:
            kept = self._attributes.get(".".join(chain))
            return kept if kept is not None else self._part(Value(modules=frozenset({""})), chain)
        base = self._value(node.value)
        return self._part(base, [node.attr]) if base.modules else Value(base.all_sources)

    def _of_subscript(self, node: ast.Subscript) -> Value:
        base = self._value(node.value)
        if isinstance(node.slice, ast.Slice):
            return base if base.items is None else merged(base.items)
        index = self._value(node.slice).constant
        if isinstance(node.slice, ast.UnaryOp) and isinstance(node.slice.op, ast.USub):
            index = None
        if base.items is not None and type(index) is int and index < len(base.items):
            return base.items[index]
        if len(base.modules) == 1 and index is not None:
            (path,) = base.modules
            module = self._at(path)
            if module is not None and is_list(module) and str(index) in module._modules:
                return Value(base.sources, frozenset({join(path, str(index))}))
        return base.iterate()
