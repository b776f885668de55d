"""Which parts of a module feed which, read from the source of its code and never run.

The order in which code uses its parts (:mod:`~lightning_freeze.layers.forward_source.reader`) does not tell whether
one of them uses the output of another. This module follows the values: each value records the parts that computed it,
and these parts feed every part that is called with the value.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from functools import cached_property

INPUT = "<input>"
"""Stands among the sources of a value for the arguments of the method that is read."""

Branch = tuple[tuple[int, int], ...]
"""The branches of ``if`` statements around a call: the statement and the number of the branch."""


@dataclass(frozen=True)
class PartCall:
    """One place where code calls a part.

    Attributes:
        path: The part, as a name relative to the module whose code is read. An element of a list that the code does
            not select by a number or key has the name of the list.
        sources: The parts that computed the arguments.
        has_gradient: Whether autograd records the call (it is outside of ``no_grad`` and ``inference_mode``).
        branch: The branches of ``if`` statements around it.
        method: The method that is called, ``""`` for the part itself.
    """

    path: str
    sources: frozenset[str]
    has_gradient: bool = True
    branch: Branch = ()
    method: str = ""


@dataclass
class ValueFlow:
    """How values flow between the parts of one module.

    Attributes:
        calls: All calls of parts, in order.
        returned: The parts that computed what the module returns.
        returns_input: Whether the inputs themselves are part of what the module returns, as in a residual block.
        passed_on: Parts that are passed to other code without being called; what that code does with them is unknown.
    """

    calls: list[PartCall] = field(default_factory=list)
    returned: frozenset[str] = frozenset()
    returns_input: bool = False
    passed_on: set[str] = field(default_factory=set)

    def calls_of(self, part: str) -> list[PartCall]:
        """The calls of a part, of something in it, or of an unnamed element of the list that it stands in."""
        return [call for call in self.calls if is_within(call.path, part) or is_within(part, call.path)]

    def runs(self, part: str) -> bool:
        """Whether the code visibly calls a part or something in it."""
        return bool(self.calls_of(part))

    def sources_of(self, part: str) -> frozenset[str]:
        """The parts whose outputs reach a part with no other part in between."""
        return union(call.sources for call in self.calls_of(part))

    def feeds_directly(self, part: str, other: str) -> bool:
        """Whether an output of one part reaches another one with no other part in between."""
        return any(_same(source, part) for call in self.calls_of(other) for source in call.sources)

    def is_known(self, part: str) -> bool:
        """Whether the code visibly calls a part, and does not pass it to other code."""
        return bool(self.calls_of(part)) and not any(is_within(part, other) for other in self.passed_on)

    @cached_property
    def _fed_by(self) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for call in self.calls:
            for source in call.sources:
                found.setdefault(source, set()).add(call.path)
        return found

    def reached_from(self, part: str, skip: Callable[[PartCall], bool] | None = None) -> set[str]:
        """Everything that uses the output of a part, directly or through other parts.

        Args:
            part: Where to begin; parts within it count as it.
            skip: Calls to leave out.
        """
        edges = self._fed_by if skip is None else ValueFlow([c for c in self.calls if not skip(c)])._fed_by
        found: set[str] = set()
        waiting = [source for source in edges if is_within(source, part) or is_within(part, source)]
        while waiting:
            for fed in edges.get(waiting.pop(), ()):
                if fed not in found:
                    found.add(fed)
                    waiting += [source for source in edges if is_within(source, fed) or is_within(fed, source)]
        return found

    def feeds(self, part: str, other: str, skip: Callable[[PartCall], bool] | None = None) -> bool:
        """Whether the output of one part reaches another, directly or through other parts."""
        return any(is_within(p, other) or is_within(other, p) for p in self.reached_from(part, skip))

    def is_discriminator(self, part: str) -> bool:
        """Whether a part is called both on outputs of others and on inputs alone: a discriminator, a loss network.

        Such a part compares; it is not a later step of what it is called on. Calls in different branches of one ``if``
        are one call.
        """
        calls = self.calls_of(part)
        fed = [call for call in calls if any(not _same(source, part) for source in call.sources)]
        unfed = [call for call in calls if not call.sources]
        same = ((a, b) for a in fed for b in unfed if (a.path, a.method) == (b.path, b.method))
        return any(not _exclusive(a.branch, b.branch) for a, b in same)

    def is_run_again(self, part: str) -> bool:
        """Whether a single run calls a part on several values that do not depend on each other."""
        calls = [call for call in self.calls if call.path == part and part not in call.sources]
        pairs = ((a, b) for i, a in enumerate(calls) for b in calls[i + 1 :] if a.method == b.method)
        return any(a.sources != b.sources and not _exclusive(a.branch, b.branch) for a, b in pairs)

    def depths(self, parts: Collection[str]) -> dict[str, int] | None:
        """Longest path from the inputs to each of some parts, counted in these parts.

        Args:
            parts: Parts, none of them inside another.

        Returns:
            Part to depth; ``None`` if the code does not visibly call one of them, or if they feed one another in
            a cycle.
        """
        if not all(self.is_known(part) for part in parts):
            return None
        before = {part: {p for p in parts if p != part and self.feeds(p, part)} for part in parts}
        depths: dict[str, int] = {}
        while len(depths) < len(before):
            ready = [part for part in before if part not in depths and before[part] <= depths.keys()]
            if not ready:
                return None
            depths |= {part: 1 + max((depths[p] for p in before[part]), default=-1) for part in ready}
        return depths


def is_within(path: str, other: str) -> bool:
    """Whether a path is another one or lies below it."""
    return path == other or path.startswith(f"{other}.")


def _same(path: str, other: str) -> bool:
    return is_within(path, other) or is_within(other, path)


def _exclusive(branch: Branch, other: Branch) -> bool:
    arms = dict(branch)
    return any(statement in arms and arms[statement] != arm for statement, arm in other)


def union(sets: Iterable[frozenset[str]]) -> frozenset[str]:
    """All members of several sets."""
    return frozenset().union(*sets)
