"""A value in a module's code: the parts that computed it, and the parts that it stands for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lightning_freeze.layers.forward_source.value_flow.flow import union


@dataclass(frozen=True)
class Value:
    """A value that code works with.

    Attributes:
        sources: The parts whose outputs it was computed from.
        modules: Paths of the modules or lists of modules that it stands for.
        items: The values in it if it is a tuple, where these are known one by one.
        element: What an iteration over it yields, where that is known.
        constant: The number or text that it is, else ``None``.
    """

    sources: frozenset[str] = frozenset()
    modules: frozenset[str] = frozenset()
    items: tuple[Value, ...] | None = None
    element: Value | None = None
    constant: int | str | None = None

    @property
    def all_sources(self) -> frozenset[str]:
        """The sources of the value and of everything in it."""
        inner = [*(self.items or ()), *([self.element] if self.element else [])]
        return union([self.sources, *(value.all_sources for value in inner)])

    @property
    def all_modules(self) -> frozenset[str]:
        """The modules that the value and everything in it stand for."""
        inner = [*(self.items or ()), *([self.element] if self.element else [])]
        return union([self.modules, *(value.all_modules for value in inner)])

    def iterate(self) -> Value:
        """The value of the loop target in each iteration over the value."""
        if self.element is not None:
            return self.element
        if self.items is not None:
            return merged(self.items) if self.items else NOTHING
        return Value(self.sources, self.modules)


NOTHING = Value()


def merged(values: Iterable[Value]) -> Value:
    """One value for several that a name may stand for."""
    found = list(values)
    if not found:
        return NOTHING
    if len(found) == 1:
        return found[0]
    lengths = {len(value.items) if value.items is not None else -1 for value in found}
    if len(lengths) == 1 and -1 not in lengths:
        columns = zip(*(value.items or () for value in found), strict=True)
        return Value(union(v.sources for v in found), frozenset(), tuple(merged(column) for column in columns))
    constants = {value.constant for value in found}
    elements = [value.element for value in found if value.element is not None]
    return Value(
        union(value.all_sources for value in found),
        union(value.all_modules for value in found),
        element=merged(elements) if len(elements) == len(found) else None,
        constant=constants.pop() if len(constants) == 1 else None,
    )
