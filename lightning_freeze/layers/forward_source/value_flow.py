"""Which child of a module feeds which, read from the module's own code.

The code is followed once with sets in place of tensors: each value stands for the children whose outputs it is made of.
Loops are followed twice, so that what one turn leaves reaches the next; both ways of a branch count.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import nn

from lightning_freeze.layers.forward_source.syntax import entries, is_fact, is_super, parse

_FRAMEWORK = ("torch.nn.modules.module", "lightning.", "pytorch_lightning.", "transformers.modeling_utils")
#: Methods of a list, a dict or a set that put something into it.
GROWS = frozenset({"append", "extend", "insert", "add", "update"})
_DEPTH = 12


@dataclass(frozen=True)
class Value:
    """What an expression stands for.

    Attributes:
        modules: Paths of the children that it may be (``"decoder"``, ``"model.layers"``; a list stands for its
            elements).
        sources: Paths of the children of whose outputs it is made.
    """

    modules: frozenset[str] = frozenset()
    sources: frozenset[str] = frozenset()

    def __or__(self, other: Value) -> Value:
        return Value(self.modules | other.modules, self.sources | other.sources)


_NOTHING = Value()


@dataclass
class ValueFlow:
    """The connections between the children of a module.

    Attributes:
        inputs: Path of a child that the code runs, to those whose outputs reach it without passing another one.
    """

    inputs: dict[str, set[str]] = field(default_factory=dict)

    def runs(self, branch: str) -> bool:
        """Whether the code runs a child or a part of it."""
        return any(_overlap(path, branch) for path in self.inputs)

    def feeds(self, first: str, second: str) -> bool:
        """Whether an output of ``first`` reaches ``second``, directly or through other children."""
        reached: set[str] = set()
        found = {first}
        while found - reached:
            reached |= found
            found = {path for path in self.inputs if any(self.feeds_directly(one, path) for one in reached)}
            if any(_overlap(path, second) for path in found):
                return True
        return False

    def feeds_directly(self, first: str, second: str) -> bool:
        """Whether an output of ``first`` reaches ``second`` with no other child between them."""
        sources = {s for path, found in self.inputs.items() if _overlap(path, second) for s in found}
        return any(_overlap(source, first) for source in sources)


def value_flow(module: nn.Module) -> ValueFlow | None:
    """Read which children of a module feed which.

    Args:
        module: The module; its code is parsed, not run.

    Returns:
        The connections; children without parameters count as no step in between. ``None`` if the code cannot be
        followed.
    """
    try:
        interpreter = _Interpreter(module)
        for entry in entries(type(module)):
            interpreter.run_method(entry)
    except Exception:  # code may be written in any way; without an answer the order of the layers decides
        return None
    return interpreter.flow if interpreter.flow.inputs else None


def _overlap(first: str, second: str) -> bool:
    """Whether two paths name the same module, or one a part of the other."""
    return first == second or first.startswith(f"{second}.") or second.startswith(f"{first}.")


class _Interpreter:
    """Follows the code of one module; ``_names`` holds the local names of the method that is being followed."""

    def __init__(self, module: nn.Module) -> None:
        self.flow = ValueFlow()
        self._module = module
        self._self = ""
        self._owner: type = type(module)
        self._names: dict[str, Value] = {}
        self._attributes: dict[str, Value] = {}
        self._returned = _NOTHING
        self._open: list[object] = []

    def run_method(self, name: str, arguments: Mapping[str | int, Value] | None = None, behind: bool = False) -> Value:
        """The value that a method returns; ``behind`` looks for it above the class that is being followed."""
        mro = type(self._module).__mro__
        classes = mro[mro.index(self._owner) + 1 :] if behind else mro
        owner = next((cls for cls in classes if name in vars(cls)), None)
        function = vars(owner)[name] if owner is not None else None
        given = arguments or {}
        everything = _joined(given.values())
        if owner is None or not inspect.isfunction(function) or (function.__module__ or "").startswith(_FRAMEWORK):
            return Value(sources=everything.sources)
        tree = parse(function)
        if tree is None or not tree.args.args or function in self._open or len(self._open) > _DEPTH:
            return Value(sources=everything.sources)
        outer = (self._self, self._owner, self._names, self._returned)
        self._self, self._owner, self._returned = tree.args.args[0].arg, owner, _NOTHING
        self._names = _bound(tree, given)
        self._open.append(function)
        self._block(tree.body)
        self._open.pop()
        result = self._returned
        self._self, self._owner, self._names, self._returned = outer
        return result

    # Statements

    def _block(self, body: Iterable[ast.stmt]) -> None:
        for statement in body:
            self._statement(statement)

    def _statement(self, node: ast.stmt) -> None:
        if isinstance(node, ast.Assign):
            value = self._value(node.value)
            for target in node.targets:
                self._assign(target, value)
        elif isinstance(node, ast.AnnAssign):
            self._assign(node.target, self._value(node.value))
        elif isinstance(node, ast.AugAssign):
            self._assign(node.target, self._value(node.target) | self._value(node.value))
        elif isinstance(node, ast.For | ast.AsyncFor):
            self._loop(node)
        elif isinstance(node, ast.While):
            self._twice([node.test], node.body)
            self._block(node.orelse)
        elif isinstance(node, ast.If):
            self._value(node.test)
            self._either(node.body, node.orelse)
        elif isinstance(node, ast.With | ast.AsyncWith):
            for item in node.items:
                self._value(item.context_expr)
            self._block(node.body)
        elif isinstance(node, ast.Try):
            self._block([*node.body, *(s for handler in node.handlers for s in handler.body)])
            self._block([*node.orelse, *node.finalbody])
        elif isinstance(node, ast.Return):
            self._returned |= self._value(node.value)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            self._names[node.name] = self._inner_function(node)
        elif not isinstance(node, ast.ClassDef):
            for part in ast.iter_child_nodes(node):
                self._value(part)

    def _inner_function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> Value:
        """A function in a method: what it runs is run where it is called, so its modules are what it stands for."""
        chains = [chain for sub in ast.walk(node) if (chain := self._child(sub))]
        return Value(modules=frozenset(chains))

    def _loop(self, node: ast.For | ast.AsyncFor) -> None:
        over = self._value(node.iter)
        for _ in range(2):
            self._assign(node.target, over)
            before = dict(self._names)
            self._block(node.body)
            self._names = _merged(before, self._names)
        self._block(node.orelse)

    def _twice(self, tests: Iterable[ast.expr], body: list[ast.stmt]) -> None:
        for _ in range(2):
            for test in tests:
                self._value(test)
            before = dict(self._names)
            self._block(body)
            self._names = _merged(before, self._names)

    def _either(self, body: list[ast.stmt], orelse: list[ast.stmt]) -> None:
        before = dict(self._names)
        self._block(body)
        after_body, self._names = self._names, before
        self._block(orelse)
        leaves = body and isinstance(body[-1], ast.Return | ast.Raise | ast.Continue | ast.Break)
        self._names = self._names if leaves else _merged(after_body, self._names)

    def _assign(self, target: ast.expr, value: Value) -> None:
        if isinstance(target, ast.Name):
            self._names[target.id] = value
        elif isinstance(target, ast.Tuple | ast.List):
            for part in target.elts:
                self._assign(part, value)
        elif isinstance(target, ast.Starred):
            self._assign(target.value, value)
        else:
            self._add(target, value)

    def _add(self, target: ast.expr, value: Value) -> None:
        """Let a value become a part of what a target holds: an element of a list, an attribute of an object."""
        chain = _chain(target)
        while isinstance(target, ast.Subscript | ast.Attribute):
            target = target.value
        if not isinstance(target, ast.Name):
            return
        if target.id == self._self and chain:
            self._attributes[chain[1]] = self._attributes.get(chain[1], _NOTHING) | value
        elif target.id != self._self:
            self._names[target.id] = self._names.get(target.id, _NOTHING) | value

    # Expressions

    def _value(self, node: ast.AST | None) -> Value:
        if node is None or isinstance(node, ast.Constant):
            return _NOTHING
        if isinstance(node, ast.Name):
            return self._names.get(node.id, _NOTHING)
        if isinstance(node, ast.Attribute):
            return self._attribute(node)
        if isinstance(node, ast.Call):
            return self._call(node)
        if isinstance(node, ast.NamedExpr):
            value = self._value(node.value)
            self._assign(node.target, value)
            return value
        if isinstance(node, ast.IfExp):
            self._value(node.test)
            return self._value(node.body) | self._value(node.orelse)
        if isinstance(node, ast.Lambda):
            return self._value(node.body)
        if isinstance(node, ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp):
            return self._comprehension(node)
        return _joined([self._value(part) for part in ast.iter_child_nodes(node)])

    def _comprehension(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) -> Value:
        before = dict(self._names)
        for part in node.generators:
            self._assign(part.target, self._value(part.iter))
            for test in part.ifs:
                self._value(test)
        parts = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
        value = _joined([self._value(part) for part in parts])
        self._names = before
        return value

    def _attribute(self, node: ast.Attribute) -> Value:
        child, chain = self._child(node), _chain(node)
        if child is not None and chain is not None:
            rest = chain[2 + child.count(".") :]
            return Value(modules=frozenset({child})) if not rest or self._runs(child, rest[0]) else _NOTHING
        if chain and chain[0] == self._self and len(chain) > 1:
            return self._attributes.get(chain[1], _NOTHING)
        base = self._value(node.value)
        return _NOTHING if base.modules and is_fact(node.attr) else base

    def _runs(self, child: str, key: str) -> bool:
        """Whether ``self.child.key`` is a method or a weight of the child, rather than a setting."""
        module = self._module.get_submodule(child)
        return not (is_fact(key) or key in module.__dict__ or key in module._buffers)

    def _child(self, node: ast.AST) -> str | None:
        """``"model.decoder"`` for ``self.model.decoder``, if that is a child or a part of one."""
        chain = _chain(node)
        if not chain or chain[0] != self._self or len(chain) < 2:
            return None
        module: nn.Module | None = self._module
        path: list[str] = []
        for key in chain[1:]:
            below = module._modules.get(key) if module is not None else None
            if below is None:
                break
            module, path = below, [*path, key]
        return ".".join(path) or None

    def _call(self, node: ast.Call) -> Value:
        arguments: dict[str | int, Value] = {i: self._value(part) for i, part in enumerate(node.args)}
        arguments |= {part.arg or f"**{i}": self._value(part.value) for i, part in enumerate(node.keywords)}
        given = _joined(arguments.values())
        function = node.func
        if isinstance(function, ast.Name) and function.id == "getattr" and node.args:
            return self._looked_up(node) or given
        chain = _chain(function)
        if chain == [self._self]:
            return self.run_method("forward", arguments)
        if is_super(function):
            assert isinstance(function, ast.Attribute)
            return self.run_method(function.attr, arguments, behind=True)
        if chain and chain[0] == self._self and len(chain) == 2 and self._child(function) is None:
            return self.run_method(chain[1], arguments)
        called = self._value(function)
        if isinstance(function, ast.Attribute) and (function.attr in GROWS or function.attr.endswith("_")):
            self._add(function.value, given)
        if called.modules and isinstance(function, ast.Attribute) and self._only_views(function):
            return called
        if called.modules:
            return self._run(called.modules, given.sources | called.sources)
        if given.modules and not (isinstance(function, ast.Name) and _is_view(function.id)):
            return self._run(given.modules, given.sources)  # a function that receives modules runs them
        return called | given

    def _only_views(self, function: ast.Attribute) -> bool:
        return function.attr in {"items", "values", "keys", "children", "named_children"} or is_fact(function.attr)

    def _looked_up(self, node: ast.Call) -> Value | None:
        """What ``getattr(self, f"block{i}")`` may be: every child whose name fits."""
        if not (isinstance(node.args[0], ast.Name) and node.args[0].id == self._self and len(node.args) > 1):
            return None
        key = node.args[1]
        first = key.values[0] if isinstance(key, ast.JoinedStr) and key.values else key
        start = first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else ""
        return Value(modules=frozenset(name for name in self._module._modules if name.startswith(start)))

    def _run(self, modules: frozenset[str], sources: frozenset[str]) -> Value:
        """Note that children run on values, and give what they return."""
        result: frozenset[str] = frozenset()
        for path in modules:
            if next(self._module.get_submodule(path).parameters(), None) is None:
                result |= sources
                continue
            self.flow.inputs.setdefault(path, set()).update(sources)
            result |= {path}
        return Value(sources=result)


def _is_view(name: str) -> bool:
    """Whether a built-in function looks at a list of modules without running them."""
    return name in {"enumerate", "zip", "reversed", "list", "tuple", "sorted", "iter", "next", "len", "isinstance"} | {
        "hasattr", "range", "id", "type", "print", "dict", "set"
    }  # fmt: skip


def _bound(tree: ast.FunctionDef | ast.AsyncFunctionDef, given: Mapping[str | int, Value]) -> dict[str, Value]:
    """The parameters of a method with what a call hands over."""
    places = [part.arg for part in [*tree.args.posonlyargs, *tree.args.args]][1:]
    known = {*places, *(part.arg for part in tree.args.kwonlyargs)}
    names = {places[key]: value for key, value in given.items() if isinstance(key, int) and key < len(places)}
    names |= {key: value for key, value in given.items() if isinstance(key, str) and key in known}
    rest = _joined(
        value for key, value in given.items() if (key >= len(places) if isinstance(key, int) else key not in known)
    )
    if any(isinstance(key, str) and key.startswith("**") for key in given):
        names = {key: names.get(key, _NOTHING) | rest for key in known}
    names |= {part.arg: rest for part in (tree.args.vararg, tree.args.kwarg) if part is not None}
    return names


def _joined(values: Iterable[Value]) -> Value:
    found = _NOTHING
    for value in values:
        found |= value
    return found


def _merged(first: Mapping[str, Value], second: Mapping[str, Value]) -> dict[str, Value]:
    return {name: first.get(name, _NOTHING) | second.get(name, _NOTHING) for name in {*first, *second}}


def _chain(node: ast.AST) -> list[str] | None:
    """``["self", "a", "b"]`` for ``self.a.b``, ``None`` for what is no such chain of names."""
    names: list[str] = []
    while isinstance(node, ast.Attribute | ast.Subscript):
        if isinstance(node, ast.Attribute):
            names.append(node.attr)
        node = node.value
    return [node.id, *reversed(names)] if isinstance(node, ast.Name) else None
