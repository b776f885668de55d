"""Lists whose elements run side by side: each on the same input, none on the output of another.

``[head(h) for head in self.heads]`` makes several outputs from one input; such elements have no order in depth. A
loop that passes the output of one element to the next is a chain.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Hashable, Iterable, Iterator, Mapping
from functools import lru_cache

from torch import nn

from lightning_freeze.layers.forward_source.syntax import Function, entry_methods, parse

_FRAMEWORK = ("torch.", "lightning.", "pytorch_lightning.", "transformers.modeling_utils", "transformers.generation")
#: Stands for what an element returns.
_OUTPUT = "@output"
_VIEWS = frozenset({"items", "values", "keys"})
_AROUND = frozenset({"enumerate", "zip", "reversed", "list", "tuple", "sorted"})
_GROWS = frozenset({"append", "extend", "insert", "add", "update"})


def side_by_side(module: nn.Module) -> frozenset[str]:
    """The lists that the code of a module runs side by side, by their path from the module.

    Args:
        module: The module; its code is parsed, not run.

    Returns:
        Paths such as ``"heads"`` or ``"model.heads"``; a list that any loop runs as a chain is not among them.
    """
    return _in_class(type(module))  # type: ignore[arg-type]


@lru_cache(maxsize=4096)
def _in_class(cls: Hashable) -> frozenset[str]:
    assert isinstance(cls, type)
    beside: set[str] = set()
    chained: set[str] = set()
    for tree in _forward_methods(cls):
        for path, is_chain in _loops(tree, tree.args.args[0].arg):
            (chained if is_chain else beside).add(path)
    return frozenset(beside - chained)


def _forward_methods(cls: type) -> list[Function]:
    """The methods that a forward pass runs. Other methods only prepare, for example shard or compile each element."""
    found: dict[str, Function] = {}
    names = list(entry_methods(cls))
    while names:
        name = names.pop()
        owner = next((base for base in cls.__mro__ if name in vars(base)), None)
        function = vars(owner)[name] if owner is not None else None
        if owner is None or name in found or (owner.__module__ + ".").startswith(_FRAMEWORK):
            continue
        tree = parse(function) if inspect.isfunction(function) else None
        if tree is None or not tree.args.args:
            continue
        found[name] = tree
        attributes = (sub for sub in ast.walk(tree) if isinstance(sub, ast.Attribute))
        names += [path for sub in attributes if (path := _path(sub, tree.args.args[0].arg)) and "." not in path]
    return list(found.values())


def _loops(tree: ast.AST, this: str) -> Iterator[tuple[str, bool]]:
    """Each list that a loop runs, and whether what one element returns reaches the next."""
    for node in ast.walk(tree):
        if isinstance(node, ast.For):
            for path, calls in _element_calls(node.target, node.iter, node.body, this):
                yield path, _is_chain(node.body, calls)
        elif isinstance(node, ast.ListComp | ast.GeneratorExp | ast.DictComp | ast.SetComp):
            parts: list[ast.AST] = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
            for part in node.generators:
                for path, calls in _element_calls(part.target, part.iter, parts, this):
                    yield path, _is_chain(parts, calls)  # by ``x := layer(x)``


def _element_calls(
    target: ast.expr, iterated: ast.expr, body: Iterable[ast.AST], this: str
) -> Iterator[tuple[str, list[ast.Call]]]:
    body = list(body)
    calls = [sub for part in body for sub in ast.walk(part) if isinstance(sub, ast.Call)]
    names = {name.id for name in ast.walk(target) if isinstance(name, ast.Name)}
    for path in _lists_in(iterated, this):
        of_element = [call for call in calls if _runs(call, names, path, this)]
        if of_element:
            yield path, of_element
    for path in {p for call in calls if (p := _indexed(call.func, this, names)) is not None}:
        yield path, [call for call in calls if _indexed(call.func, this, names) == path]


def _lists_in(iterated: ast.expr, this: str) -> list[str]:
    """The lists that a loop iterates over."""
    if isinstance(iterated, ast.Call):
        if isinstance(iterated.func, ast.Attribute) and iterated.func.attr in _VIEWS:
            return _lists_in(iterated.func.value, this)
        if isinstance(iterated.func, ast.Name) and iterated.func.id in _AROUND:
            return [path for argument in iterated.args for path in _lists_in(argument, this)]
        return []
    if isinstance(iterated, ast.Subscript) and isinstance(iterated.slice, ast.Slice):
        return _lists_in(iterated.value, this)
    path = _path(iterated, this)
    return [path] if path else []


def _runs(call: ast.Call, names: set[str], path: str, this: str) -> bool:
    """Whether a call runs an element: itself, a method of it, or a function that receives it."""
    # ``layer.output.parameters()`` and the like only inspect an element.
    base = call.func.value if isinstance(call.func, ast.Attribute) else call.func
    if not (call.args or call.keywords):
        return False
    if isinstance(base, ast.Name) and base.id in names:
        return True
    if any(isinstance(sub, ast.Name) and sub.id in names for sub in ast.walk(call.func)):
        return _indexed(call.func, this, names) == path
    return any(isinstance(argument, ast.Name) and argument.id in names for argument in call.args) and len(call.args) > 1


def _indexed(function: ast.expr, this: str, names: set[str]) -> str | None:
    """The list whose element a call runs by the number or key of the loop: ``self.heads[i](h)``."""
    if isinstance(function, ast.Subscript):
        uses = {sub.id for sub in ast.walk(function.slice) if isinstance(sub, ast.Name)}
        return (_path(function.value, this) or None) if uses & names else None
    return None


def _is_chain(body: Iterable[ast.AST], calls: list[ast.Call]) -> bool:
    feeds = _dependencies(body, calls)
    for call in calls:
        inputs = {sub.id for part in [*call.args, *(k.value for k in call.keywords)] for sub in _names(part)}
        seen: set[str] = set()
        while inputs:
            name = inputs.pop()
            if name == _OUTPUT:
                return True
            seen.add(name)
            inputs |= feeds.get(name, set()) - seen
    return False


def _dependencies(body: Iterable[ast.AST], calls: list[ast.Call]) -> Mapping[str, set[str]]:
    """The names that each name depends on within a loop."""
    found: dict[str, set[str]] = {}
    for node in (sub for part in body for sub in ast.walk(part)):
        targets: list[ast.expr] = []
        value: ast.AST | None = None
        if isinstance(node, ast.Assign):
            targets, value = node.targets, node.value
        elif isinstance(node, ast.AugAssign | ast.AnnAssign | ast.NamedExpr):
            targets, value = [node.target], node.value
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _GROWS:
            targets, value = [node.func.value], node
        if value is None:
            continue
        sources = {sub.id for sub in _names(value)}
        sources |= {_OUTPUT} if any(sub in calls for sub in ast.walk(value)) else set()
        for target in targets:
            for name in _names(target):
                found.setdefault(name.id, set()).update(sources)
    return found


def _names(node: ast.AST) -> Iterator[ast.Name]:
    return (sub for sub in ast.walk(node) if isinstance(sub, ast.Name))


def _path(node: ast.expr, this: str) -> str:
    """``"model.heads"`` for ``self.model.heads``, empty for anything else."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    return ".".join(reversed(names)) if isinstance(node, ast.Name) and node.id == this else ""
