"""Loops in a module's code: the modules that each iteration uses, and the number of iterations."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from lightning_freeze.layers.forward_source.expressions import Element, items_of
from lightning_freeze.layers.forward_source.scope import Scope, elements_in
from lightning_freeze.layers.forward_source.syntax import is_weight, only_reads_attributes, uses_parts_of_elements

_LONGEST = 256


def iterations_of(node: ast.For, scope: Scope) -> list[Any] | None:
    """The value of a loop's target in each iteration; ``None`` if it is unknown or not needed."""
    turns = items_of(scope.evaluate(node.iter))
    if turns is None or len(turns) > _LONGEST:
        return None
    lists = {e.path.rpartition(".")[0] for turn in turns for e in elements_in(turn)}
    chains = [chain for part in node.body for sub in ast.walk(part) if (chain := scope.chain(sub))]
    more = len(lists) > 1 or any(chain[0] in scope.names for chain in chains) or uses_parts_of_elements(node)
    more = more or passes_counter(node, scope) or _takes_from_outer(node, scope)
    nested = any(isinstance(sub, ast.For) for part in node.body for sub in ast.walk(part)) and scope.bound
    ordered = [e.path for turn in turns for e in elements_in(turn)]
    plain = not (more or nested) and ordered == _all_of(lists, scope)
    return None if plain or not (lists or more) else list(turns)


def passes_counter(node: ast.For, scope: Scope) -> bool:
    """Whether a loop passes its counter to a method of the same object, which may pick a layer by it."""
    first = node.target.elts[0] if isinstance(node.target, ast.Tuple) else node.target
    counts = isinstance(node.iter, ast.Call) and getattr(node.iter.func, "id", "") in {"range", "enumerate"}
    calls = (s for part in node.body for s in ast.walk(part) if isinstance(s, ast.Call) if scope.chain(s.func))
    arguments = (part for s in calls for value in [*s.args, *(k.value for k in s.keywords)] for part in ast.walk(value))
    return counts and isinstance(first, ast.Name) and any(getattr(part, "id", "") == first.id for part in arguments)


def _takes_from_outer(node: ast.For, scope: Scope) -> bool:
    """Whether a loop over numbers uses an element of an outer loop: ``stage.blocks[number]``."""
    names = {s.value.id for s in ast.walk(node) if isinstance(s, ast.Attribute) and isinstance(s.value, ast.Name)}
    return any(isinstance(scope.bound.get(name), Element) for name in names)


def changes_only(node: ast.For) -> bool:
    """Whether a loop only changes weights in place: its target is never called and never passed on."""
    names = {s.id for s in ast.walk(node.target) if isinstance(s, ast.Name)}
    inside = [s for part in node.body for s in ast.walk(part)]
    bases = [s.value for s in inside if isinstance(s, ast.Attribute)]
    uses = [s for s in inside if isinstance(s, ast.Name) and s.id in names]
    held = {s.id for s in bases if isinstance(s, ast.Name)} & names
    changes = (s.func for s in inside if isinstance(s, ast.Call) and isinstance(s.func, ast.Attribute))
    return any(f.attr.endswith("_") and is_weight(f.value) for f in changes) and all(
        use in bases for use in uses if use.id in held
    )


def runs_nothing(loop: ast.For | ast.comprehension, body: Sequence[ast.AST], scope: Scope) -> bool:
    """Whether a loop only inspects modules and runs none."""
    chains = [chain for part in body for sub in ast.walk(part) if (chain := scope.chain(sub)) is not None]
    others = (chain for chain in chains if chain and not chain[0].startswith(("log", "print")))
    return only_reads_attributes(loop.target, loop.iter, body) and not any(others)


def different_each_iteration(trace: Sequence[str], starts: Sequence[int]) -> set[str]:
    """Lists of which each iteration of a loop uses different elements, chosen by inner loops.

    Args:
        trace: All uses, in order.
        starts: Where in ``trace`` each iteration starts.
    """
    turns = [set(trace[a:b]) for a, b in pairwise([*starts, len(trace)])]
    uses = Counter(step for turn in turns for step in turn)
    repeated = {step.split(".")[0] for step, count in uses.items() if count > 1 or "." not in step}
    return {step.split(".")[0] for step in uses} - repeated if len(turns) > 1 else set()


def count_of(node: ast.expr, scope: Scope) -> int | None:
    """Evaluate ``range(self.a.b)``."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range"):
        return None
    if len(node.args) != 1:
        return None
    value: Any = scope.module
    for name in scope.chain(node.args[0]) or [""]:
        # A config may translate names (``num_hidden_layers``), so `getattr` is used, unlike in `Scope.value`.
        value = getattr(value, name, None)
    return value if isinstance(value, int) else None


def _all_of(lists: set[str], scope: Scope) -> list[str]:
    """Paths of all elements of a list, in registration order."""
    path = next(iter(lists), "")
    if "." in path or path not in scope.module._modules:
        return []
    return [f"{path}.{key}" for key in scope.module._modules[path]._modules]  # type: ignore[union-attr]
