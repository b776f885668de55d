"""Calls in a module's code: to its parts, to its own methods, and to other functions."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from lightning_freeze.layers.forward_source.calls import arguments_by_name
from lightning_freeze.layers.forward_source.syntax import Function, is_metadata, parse
from lightning_freeze.layers.forward_source.value_flow.expressions import FlowExpressions
from lightning_freeze.layers.forward_source.value_flow.flow import union
from lightning_freeze.layers.forward_source.value_flow.state import flat, is_list, name_of
from lightning_freeze.layers.forward_source.value_flow.values import NOTHING, Value

_INSPECTION = frozenset({"len", "isinstance", "hasattr", "id", "type", "print", "issubclass", "callable"})
_LONGEST = 16
_SAME = frozenset({"reversed", "list", "tuple", "iter", "sorted", "set"})
_CHANGES = frozenset({"append", "extend", "insert", "add", "update", "setdefault", "appendleft", "copy_", "add_"})


class FlowCalls(FlowExpressions):
    """Records the calls of parts, and finds what calls return."""

    def _of_call(self, node: ast.Call) -> Value:
        function = node.func
        if isinstance(function, ast.Name):
            known = self._of_function(function.id, node)
            if known is not None:
                return known
        own = self._of_own_method(node)
        if own is not None:
            return own
        base = NOTHING
        if isinstance(function, ast.Attribute) and self._scope.chain(function.value) != []:
            base = self._value(function.value)
            if base.modules:
                return self._method_of_part(node, function.attr, base)
        target = self._value(function)
        if target.modules:
            return self._call_parts(target.modules, node)
        return self._of_unread_code(node, base.all_sources | target.all_sources)

    def _of_function(self, name: str, node: ast.Call) -> Value | None:
        """A call by a name that the language or the method itself defines."""
        if name in _INSPECTION:
            return NOTHING
        if name in self._functions:
            self._arguments(node)
            nested = self._functions.pop(name)
            value = self._body(nested.body)
            self._functions[name] = nested
            return value
        if name == "getattr" and len(node.args) >= 2:
            key = self._value(node.args[1]).constant
            is_own = self._scope.chain(node.args[0]) == []
            base = Value(modules=frozenset({""})) if is_own else self._value(node.args[0])
            if is_own and not isinstance(key, str):
                self.flow.passed_on |= set(self._module._modules)  # it may be any of them
                return NOTHING
            return self._part(base, [key]) if isinstance(key, str) and base.modules else base
        if name == "range":
            return self._range(node)
        return self._iterator(name, node)

    def _range(self, node: ast.Call) -> Value:
        """The numbers of a ``range``, if these are few and known."""
        values = [self._value(part).constant for part in node.args]
        found = [self._scope.evaluate(a) if v is None else v for a, v in zip(node.args, values, strict=True)]
        numbers = [value for value in found if type(value) is int]
        if len(numbers) < len(found) or not 0 < len(found) < 4 or (len(found) == 3 and not found[2]):
            return NOTHING
        counted = range(*numbers)
        return Value(items=tuple(Value(constant=i) for i in counted)) if len(counted) <= _LONGEST else NOTHING

    def _of_own_method(self, node: ast.Call) -> Value | None:
        """A call of the module itself, of one of its methods, or of one of ``super()``."""
        function = node.func
        if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Call):
            if name_of(function.value) != "super":
                return None
            return self._own(function.attr, node, self._scope.owner, skip=True)
        chain = self._scope.chain(function)
        if chain == []:
            return self._own("forward", node, type(self._module))
        if (
            chain
            and chain[-1] in ("children", "named_children", "values", "items")
            and chain[:-1] in ([], ["_modules"])
        ):
            children = [Value(modules=frozenset({key})) for key, m in self._module._modules.items() if m is not None]
            named = chain[-1] in ("named_children", "items")
            return Value(items=tuple(Value(items=(NOTHING, child)) if named else child for child in children))
        if chain and len(chain) == 1 and chain[0] not in self._scope.names and chain[0] not in self._attributes:
            return self._own(chain[0], node, type(self._module))
        return None

    def _of_unread_code(self, node: ast.Call, sources: frozenset[str]) -> Value:
        """A call of code that is not read: its result depends on all of its arguments."""
        arguments = self._arguments(node)
        if name_of(node.func).endswith("_like"):
            return NOTHING  # it uses the shape of a tensor, not its values
        if isinstance(node.func, ast.Attribute) and node.func.attr in _CHANGES:
            for value in arguments:
                self._add(node.func.value, value)
        # Code that receives a module calls it with its other arguments (gradient checkpointing).
        sources = union([sources, *(value.all_sources for value in arguments)])
        modules = union(value.all_modules for value in arguments)
        for path in modules:
            module = self._at(path)
            if module is not None and (is_list(module) or path == ""):
                self.flow.passed_on.add(path)
            elif path:
                self._note(path, sources)
        return Value(sources | frozenset(path for path in modules if path))

    def _iterator(self, name: str, node: ast.Call) -> Value | None:
        if name not in {"enumerate", "zip"} | _SAME:
            return None
        values = [self._value(argument) for argument in node.args]
        if not values:
            return NOTHING
        if name == "enumerate":
            known = values[0].items
            if known is not None and len(node.args) == 1 and not node.keywords:
                return Value(items=tuple(Value(items=(Value(constant=i), v)) for i, v in enumerate(known)))
            return Value(element=Value(items=(NOTHING, values[0].iterate())))
        if name == "zip":
            return Value(element=Value(items=tuple(value.iterate() for value in values)))
        if name == "reversed" and values[0].items is not None:
            return Value(items=values[0].items[::-1])
        return values[0]

    def _arguments(self, node: ast.Call) -> list[Value]:
        return [self._value(part) for part in [*node.args, *(keyword.value for keyword in node.keywords)]]

    def _own(self, name: str, node: ast.Call, start: type, skip: bool = False) -> Value:
        """A call of a method of the module itself."""
        arguments = self._arguments(node)
        tree = tree_of(self._module, name, start, skip)
        given: dict[str, Value] = {}
        if tree is not None:
            by_node = {id(part): value for part, value in zip(_parts(node), arguments, strict=True)}
            given = {key: by_node[id(part)] for key, part in arguments_by_name(tree, node, bound=True).items()}
            rest = [value for part, value in zip(_parts(node), arguments, strict=True) if isinstance(part, ast.Starred)]
            rest += [v for k, v in zip(node.keywords, arguments[len(node.args) :], strict=True) if k.arg is None]
            for extra in (tree.args.vararg, tree.args.kwarg):
                if extra is not None:
                    given[extra.arg] = flat(arguments)
            if rest:
                names = [part.arg for part in [*tree.args.args[1:], *tree.args.kwonlyargs]]
                given |= {key: flat(rest) for key in names if key not in given}
        value = self.call_method(name, start, given, skip)
        return value if value is not None else Value(union(v.all_sources for v in arguments))

    def _method_of_part(self, node: ast.Call, name: str, base: Value) -> Value:
        lists = [path for path in base.modules if (m := self._at(path)) is None or is_list(m)]
        if name in {"values", "children", "modules"} and lists:
            return Value(element=base)
        if name == "items" and lists:
            return Value(element=Value(items=(NOTHING, base)))
        if name in {"forward", "__call__"}:
            return self._call_parts(base.modules, node)
        if is_metadata(name):
            self._arguments(node)
            return NOTHING
        if name in {"get_input_embeddings", "get_output_embeddings"}:
            return Value(modules=frozenset(f"{path}.{name}" for path in base.modules))
        found = self._part(base, [name])
        return self._call_parts(found.modules or base.modules, node, "" if found.modules else name)

    def _call_parts(self, paths: Iterable[str], node: ast.Call, method: str = "") -> Value:
        arguments = self._arguments(node)
        sources = union(value.all_sources for value in arguments)
        for path in union(value.all_modules for value in arguments):
            self.flow.passed_on.add(path)
        found: frozenset[str] = frozenset()
        for path in paths:
            module = self._at(path)
            if module is not None and next(module.parameters(), None) is None:
                found |= sources  # an activation or a dropout is not a step in between
            else:
                self._note(path, sources, method)
                found |= {path}
        return Value(found)


def find_method(
    module: nn.Module, name: str, start: type, skip: bool = False
) -> tuple[type, Callable[..., Any]] | None:
    """A method as found from class ``start`` on (behind it with ``skip``), and the class that defines it."""
    mro = type(module).__mro__
    classes = mro[mro.index(start) + 1 :] if skip else mro
    owner = next((cls for cls in classes if name in vars(cls)), None)
    if owner is None or not callable(vars(owner)[name]):
        return None
    function = inspect.unwrap(vars(owner)[name])
    return (owner, function) if inspect.isfunction(function) else None


def tree_of(module: nn.Module, name: str, start: type, skip: bool = False) -> Function | None:
    """The syntax of a method."""
    found = find_method(module, name, start, skip)
    return parse(found[1]) if found is not None else None


def _parts(node: ast.Call) -> list[ast.expr]:
    return [*node.args, *(keyword.value for keyword in node.keywords)]
