"""Notices changes of attributes at the speed of C: by identity where a value cannot change in place."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Sequence, Set
from enum import Enum
from itertools import chain, compress
from operator import is_
from typing import Any

import torch

#: Types whose values cannot change in place.
PLAIN = frozenset({bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size})
#: The place of an attribute: the number of its owner, and its name.
Place = tuple[int, str]


class AttributeWatch:
    """Notices when an attribute of any of some objects is set, added, removed or changed in place.

    A value that cannot change in place, such as a number, is compared by identity. No Python code runs for it, so that
    thousands of attributes can be compared in each forward pass. However an attribute was set, also in ``__dict__``,
    it is noticed. All other values are described and compared in each pass. Only values that cannot change are kept
    alive: an attribute may hold a loss with its graph.

    Args:
        owners: The objects.
        describe: Returns what counts of a value, from the number of its owner and the value.
        ignores: Whether an attribute does not count, from the number of its owner and its name.
        fixed: ``id`` of objects that count only by being the same object.
        changing: Attributes that are known to be set often; they are described in each pass, but for fixed objects.
    """

    def __init__(
        self,
        owners: Sequence[object],
        describe: Callable[[int, Any], Any],
        ignores: Callable[[int, str], bool],
        fixed: Set[int] = frozenset(),
        changing: Set[Place] = frozenset(),
    ) -> None:
        self._owners = list(owners)
        self._describe = describe
        self._changing = changing
        self._names = list(chain.from_iterable(map(vars, self._owners)))
        self._is_kept: list[bool] = []
        self._places: list[Place] = []
        self._looked_at: list[Place] = []
        for number, owner in enumerate(self._owners):
            for name, value in vars(owner).items():
                counts = not ignores(number, name)
                is_constant = (number, name) not in changing and cannot_change(value)
                is_kept = counts and (is_constant or id(value) in fixed)
                self._is_kept.append(is_kept)
                if counts:
                    (self._places if is_kept else self._looked_at).append((number, name))
        self._kept = list(self._values())
        self._seen = self._look()

    def is_same(self) -> bool:
        """Whether nothing has changed since this object was made, or since this method was last called."""
        if not self.has_same_values():
            return False
        before, self._seen = self._seen, self._look()
        return self._seen == before

    def has_same_values(self) -> bool:
        """Whether no attribute was added or removed, and each that cannot change in place has the same value."""
        # The names first: with the same names in the same order, both sequences of values have the same length.
        return list(chain.from_iterable(map(vars, self._owners))) == self._names and all(
            map(is_, self._values(), self._kept)
        )

    @property
    def changing(self) -> Set[Place]:
        """The attributes that are known to be set often, with those that were set since this object was made."""
        if list(chain.from_iterable(map(vars, self._owners))) != self._names:
            return self._changing
        now = zip(self._places, self._values(), self._kept, strict=True)
        return self._changing | {place for place, value, kept in now if value is not kept}

    def _values(self) -> Iterator[Any]:
        return compress(chain.from_iterable(map(dict.values, map(vars, self._owners))), self._is_kept)

    def _look(self) -> list[Any]:
        return [self._describe(number, vars(self._owners[number])[name]) for number, name in self._looked_at]


def cannot_change(value: Any) -> bool:
    """Whether a value stays the same as long as it is the same object, as far as it counts as a setting."""
    kind = type(value)
    if kind in PLAIN or kind is types.BuiltinFunctionType or isinstance(value, Enum):
        return True
    return kind in (tuple, frozenset) and all(map(cannot_change, value))
