"""The state at one place in a module's code, while its values are followed from call to call."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from lightning_freeze.layers.forward_source.getters import getter_path
from lightning_freeze.layers.forward_source.scope import Scope
from lightning_freeze.layers.forward_source.syntax import Function
from lightning_freeze.layers.forward_source.value_flow.flow import INPUT, Branch, PartCall, ValueFlow, union
from lightning_freeze.layers.forward_source.value_flow.values import NOTHING, Value, merged


class FlowState:
    """The names, the branches of ``if`` statements and the calls so far, and the parts that each name refers to.

    Args:
        module: The module whose code is read.
    """

    def __init__(self, module: nn.Module) -> None:
        self.flow = ValueFlow()
        self._module = module
        self._scope = Scope(module)
        self._open: list[Callable[..., Any]] = []
        self._names: dict[str, Value] = {}
        self._attributes: dict[str, Value] = {}  # those of the module that the code sets
        self._functions: dict[str, Function] = {}
        self._returned: list[Value] = []
        self._without_gradient = 0
        self._branch: Branch = ()

    def _value(self, node: ast.AST | None) -> Value:
        """The value of an expression."""
        raise NotImplementedError

    def _body(self, statements: Sequence[ast.stmt], quiet: bool = False) -> Value:
        """Follow the statements of a function; returns what it returns."""
        raise NotImplementedError

    def call_method(self, name: str, start: type, given: Mapping[str, Value], skip: bool = False) -> Value | None:
        """Follow a method of the module, ``None`` if its source is not to be read."""
        raise NotImplementedError

    def _known(self, test: ast.expr) -> bool | None:
        """Outcome of a test, if the module's settings decide it."""
        if isinstance(test, ast.BoolOp):
            decides = isinstance(test.op, ast.Or)
            outcomes = [self._known(part) for part in test.values]
            if decides in outcomes:
                return decides
            return None if None in outcomes else not decides
        return self._scope.known(test)

    def _join(self, other: Mapping[str, Value]) -> None:
        """Merge the names of two branches: a name may have the value of either."""
        keys = dict.fromkeys([*self._names, *other])
        known = {key: [names[key] for names in (other, self._names) if key in names] for key in keys}
        self._names = {key: merged(dict.fromkeys(values)) for key, values in known.items()}

    def _bind(self, target: ast.expr, value: Value) -> None:
        if isinstance(target, ast.Name):
            self._names[target.id] = value
            self._functions.pop(target.id, None)
        elif isinstance(target, ast.Tuple | ast.List):
            known = value.items is not None and len(value.items) == len(target.elts)
            for place, part in enumerate(target.elts):
                one = value.items[place] if known and value.items is not None else value.iterate()
                self._bind(part.value if isinstance(part, ast.Starred) else part, one)
        elif isinstance(target, ast.Subscript):
            self._value(target.slice)
            self._add(target.value, value)
        elif isinstance(target, ast.Attribute):
            chain = self._scope.chain(target)
            if chain:
                self._attributes[".".join(chain)] = value
            else:
                self._add(target.value, value)

    def _add(self, holder: ast.expr, value: Value) -> None:
        """Record that a value is stored in another one."""
        while isinstance(holder, ast.Subscript | ast.Attribute) and self._scope.chain(holder) is None:
            holder = holder.value
        chain = self._scope.chain(holder)
        if isinstance(holder, ast.Name) and not chain:
            before = self._names.get(holder.id, NOTHING)
            self._names[holder.id] = flat([before, value])
        elif chain:
            key = ".".join(chain)
            self._attributes[key] = flat([self._attributes.get(key, NOTHING), value])

    def _part(self, base: Value, keys: Sequence[str]) -> Value:
        """The part of a module with some names."""
        found = []
        for path in base.modules:
            value = Value(modules=frozenset({path}))
            for key in keys:
                value = self._step(value, key)
            found.append(value)
        return merged(found)

    def _step(self, value: Value, key: str) -> Value:
        if not value.modules:
            return Value(value.sources)
        (path,) = value.modules
        module = self._at(path)
        if module is None:  # something in an unknown element of a list
            return value
        if key in module._modules:
            return Value(modules=frozenset({join(path, key)})) if module._modules[key] is not None else NOTHING
        if key in module._parameters:
            return Value(sources=frozenset({join(path, key)}))
        if is_list(module):
            return value
        given = getter_path(module, key, called=False)
        if given:
            return Value(modules=frozenset({join(path, *given)}))
        setting = vars(module).get(key)
        return Value(constant=setting) if type(setting) in (int, str) else NOTHING

    def _at(self, path: str) -> nn.Module | None:
        """The module of a path, ``None`` for an element of a list that is not known by number or key."""
        module: nn.Module | None = self._module
        for key in path.split(".") if path else ():
            module = module._modules.get(key) if module is not None else None
        return module

    def _note(self, path: str, sources: frozenset[str], method: str = "") -> None:
        self.flow.calls.append(PartCall(path, sources - {INPUT}, not self._without_gradient, self._branch, method))


def is_list(module: nn.Module) -> bool:
    """Whether a module only holds others, in order."""
    return isinstance(module, nn.ModuleList | nn.Sequential | nn.ModuleDict)


def flat(values: Sequence[Value]) -> Value:
    """One value for several, with the parts of all of them."""
    modules = union(value.all_modules for value in values)
    return Value(union(value.all_sources for value in values), modules)


def join(path: str, *keys: str) -> str:
    """A path and the names below it."""
    return ".".join([*([path] if path else []), *keys])


def name_of(node: ast.AST) -> str:
    """The last name of ``torch.no_grad()`` or ``torch.no_grad``."""
    node = node.func if isinstance(node, ast.Call) else node
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
