"""Values of simple expressions in a module's code: settings, loop indices and lists of modules, never run."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from lightning_freeze.layers.forward_source.getters import getter_path

UNKNOWN = object()

_BINARY: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
}
_PLAIN = (int, float, str, type(None))


@dataclass(frozen=True)
class Element:
    """A child module that a name or an expression stands for.

    Attributes:
        path: Its name in the module whose code is read.
        module: The module itself.
    """

    path: str
    module: nn.Module


class Either(list[Any]):
    """Child modules, one of which runs depending on the inputs."""


class Evaluation:
    """Evaluates expressions of one method.

    Args:
        chain: Returns ``["a", "b"]`` for the node of ``self.a.b``.
        module: The module that ``self`` is.
        bound: Local names that are known: integers, elements, or tuples of them.
    """

    def __init__(
        self, chain: Callable[[ast.AST], list[str] | None], module: nn.Module, bound: Mapping[str, Any]
    ) -> None:
        """Create an evaluation; expressions are evaluated by :meth:`value`."""
        self._chain = chain
        self._module = module
        self._bound = bound

    def value(self, node: ast.AST) -> Any:
        """The value of an expression: a number, text, list of them, an :class:`Element`, or ``UNKNOWN``.

        Raises:
            Exception: Any error of the operation; the value is then unknown.
        """
        method = getattr(self, f"_{type(node).__name__.lower()}", None)
        return UNKNOWN if method is None else method(node)

    def _constant(self, node: ast.Constant) -> Any:
        return node.value if isinstance(node.value, _PLAIN) else UNKNOWN

    def _name(self, node: ast.Name) -> Any:
        return self._bound.get(node.id, UNKNOWN)

    def _attribute(self, node: ast.Attribute) -> Any:
        chain = self._chain(node)
        if chain is None:
            base = self.value(node.value)
            return _child(base, node.attr) if isinstance(base, Element) else UNKNOWN
        if not chain or "training" in chain:
            return UNKNOWN
        if chain[0] in self._module._modules:
            child = self._module._modules[chain[0]]
            element: Any = Element(chain[0], child) if child is not None else None
            for key in chain[1:]:
                element = _child(element, key) if isinstance(element, Element) else UNKNOWN
            return element
        value: Any = self._module
        for key in chain:
            value = getattr(value, key, UNKNOWN) if not isinstance(value, nn.Module) else _setting(value, key)
        return _plain(value)

    def _subscript(self, node: ast.Subscript) -> Any:
        base = self.value(node.value)
        items = items_of(base)
        if items is None:
            return UNKNOWN
        if isinstance(node.slice, ast.Slice):
            parts = (node.slice.lower, node.slice.upper, node.slice.step)
            bounds = [None if part is None else self.value(part) for part in parts]
            known = all(bound is None or type(bound) is int for bound in bounds)
            return list(items)[slice(*bounds)] if known else UNKNOWN
        index = self.value(node.slice)
        return items[index] if type(index) is int else UNKNOWN

    def _binop(self, node: ast.BinOp) -> Any:
        left, right = self.value(node.left), self.value(node.right)
        numbers = all(isinstance(value, int | float) for value in (left, right))
        joined = isinstance(left, list) and isinstance(right, list) and isinstance(node.op, ast.Add)
        known = joined or (numbers and type(node.op) in _BINARY)
        return _BINARY[type(node.op)](left, right) if known else UNKNOWN

    def _compare(self, node: ast.Compare) -> Any:
        left, right = self.value(node.left), self.value(node.comparators[0])
        if len(node.ops) > 1 or left is UNKNOWN or right is UNKNOWN:
            return UNKNOWN
        return bool(_BINARY[type(node.ops[0])](left, right))

    def _boolop(self, node: ast.BoolOp) -> Any:
        values = [self.value(part) for part in node.values]
        decides = isinstance(node.op, ast.Or)
        if any(isinstance(value, bool) and value is decides for value in values):
            return decides
        return not decides if all(isinstance(value, bool) for value in values) else UNKNOWN

    def _unaryop(self, node: ast.UnaryOp) -> Any:
        value = self.value(node.operand)
        if isinstance(node.op, ast.Not):
            return not value if isinstance(value, bool) else UNKNOWN
        return -value if isinstance(node.op, ast.USub) and isinstance(value, int | float) else UNKNOWN

    def _ifexp(self, node: ast.IfExp) -> Any:
        test = self.value(node.test)
        if isinstance(test, bool):
            return self.value(node.body if test else node.orelse)
        sides = [self.value(node.body), self.value(node.orelse)]
        return Either(sides) if all(isinstance(side, Element) for side in sides) else UNKNOWN

    def _joinedstr(self, node: ast.JoinedStr) -> Any:
        parts = [self.value(p.value if isinstance(p, ast.FormattedValue) else p) for p in node.values]
        return UNKNOWN if UNKNOWN in parts else "".join(map(str, parts))

    def _tuple(self, node: ast.Tuple | ast.List) -> Any:
        values = [self.value(part) for part in node.elts]
        return UNKNOWN if UNKNOWN in values else values

    _list = _tuple

    def _call(self, node: ast.Call) -> Any:
        if isinstance(node.func, ast.Attribute):
            return self._method(node, node.func)
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name == "getattr" and len(node.args) >= 2 and self._chain(node.args[0]) == []:
            key = self.value(node.args[1])
            child = self._module._modules.get(key) if isinstance(key, str) else None
            return Element(key, child) if child is not None else UNKNOWN
        values = [self.value(argument) for argument in node.args]
        if name == "range" and values and all(type(value) is int for value in values):
            return range(*values)
        lists = [items_of(value) for value in values]
        found: list[Any] = [list(items) for items in lists if items is not None]
        if not found or (len(found) < len(lists) and name != "zip"):
            return UNKNOWN
        if name == "zip":
            # An unknown iterable beside the modules (their inputs) is assumed to have the same length.
            unknown = [UNKNOWN] * min(map(len, found))
            return [list(row) for row in zip(*(unknown if i is None else i for i in lists), strict=False)]
        first = found[0]
        answers: dict[str, Any] = {
            "len": len(first),
            "reversed": first[::-1],
            "enumerate": list(map(list, enumerate(first))),
        }
        answers |= dict.fromkeys(("list", "tuple", "iter"), first)
        return answers.get(name, UNKNOWN)

    def _method(self, node: ast.Call, function: ast.Attribute) -> Any:
        base = Element("", self._module) if self._chain(function.value) == [] else self.value(function.value)
        path = getter_path(base.module, function.attr, called=True) if isinstance(base, Element) else None
        if isinstance(base, Element) and path is not None and not (node.args or node.keywords):
            return _below(base, path)
        if function.attr == "index" and isinstance(base, list | tuple) and len(node.args) == 1:
            return base.index(self.value(node.args[0]))
        items = items_of(base) if isinstance(base, Element) and not node.args else None
        if items is not None and function.attr in {"children", "values"}:
            return items
        if isinstance(base, Element) and items is not None and function.attr == "items":
            return [[key, item] for key, item in zip(base.module._modules, items, strict=True)]
        return UNKNOWN


def _child(element: Element, key: str) -> Any:
    child = element.module._modules.get(key)
    return Element(f"{element.path}.{key}", child) if child is not None else UNKNOWN


def _below(element: Element, path: Sequence[str]) -> Any:
    start = [element.path] if element.path else []
    return Element(".".join([*start, *path]), element.module.get_submodule(".".join(path)))


def items_of(value: Any) -> Any:
    """What an iteration over a value yields, ``None`` if unknown."""
    if isinstance(value, list | tuple | range):
        return value
    if isinstance(value, Element) and isinstance(value.module, nn.ModuleList | nn.Sequential | nn.ModuleDict):
        return [_child(value, key) for key in value.module._modules]
    return None


def _setting(module: nn.Module, key: str) -> Any:
    places = (vars(place) for place in (module, *type(module).__mro__))
    return next((place[key] for place in places if key in place), UNKNOWN)


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return list(value) if all(isinstance(part, _PLAIN) for part in value) else UNKNOWN
    return value if isinstance(value, _PLAIN) else UNKNOWN
