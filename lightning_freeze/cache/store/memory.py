"""The RAM tier: entries in large slabs, within a budget, with an eviction policy for epochs.

Training reads each sample once in an epoch. If not all of them fit, evicting the least recently used entry (LRU) evicts
each entry just before it is needed, and there are hardly any hits. It is best to keep the present entries and not to
store others: with room for a share s of the samples, a share s of the look-ups hit. So a full tier accepts nothing new
until something in it is stale:

- a namespace without a look-up, while other namespaces had as many look-ups as there are entries (the boundary of the
  frozen prefix has moved);
- a slab without a hit during eight times as many look-ups (its samples do not recur).

Stale namespaces and slabs are dropped as a whole, so that neither memory nor the index is fragmented. The first slab of
a namespace is small and each further one is twice as large, for runs in which each step creates a new namespace.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from lightning_freeze.cache.store.entry import EntryReader
from lightning_freeze.cache.store.index import KeyIndex, as_array

_ALIGNMENT = 64
_SLABS = 64
_FIRST_SLAB = 1024**2
_LARGEST_SLAB = 64 * 1024**2
_LEAST_LOOKUPS = 256
_SLAB_PATIENCE = 8


@dataclass
class _Slab:
    data: Tensor
    used: int
    hit: int

    def __post_init__(self) -> None:
        self.reader = EntryReader(self.data)


@dataclass
class _Space:
    """The entries of one namespace."""

    last_lookup: int
    index: KeyIndex = field(default_factory=KeyIndex)
    slabs: dict[int, _Slab] = field(default_factory=dict)


@dataclass
class Place:
    """Room for one entry.

    Attributes:
        data: Its bytes (uint8), to be filled.
        number: Its number in the index.
    """

    data: Tensor
    number: int


class MemoryTier:
    """Entries in RAM.

    Args:
        budget: Maximum size of all slabs in bytes. The index takes another 34 to 51 bytes for each entry.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.bytes = 0
        self.evicted = 0
        self._lookups = 0
        self._next = 0
        self._spaces: dict[bytes, _Space] = {}
        self._slab_size = max(_ALIGNMENT, min(_LARGEST_SLAB, budget // _SLABS))

    def __len__(self) -> int:
        return sum(len(space.index) for space in self._spaces.values())

    @property
    def stored_bytes(self) -> int:
        """Size of the entries in bytes; the rest of :attr:`bytes` is still free."""
        return sum(slab.used for space in self._spaces.values() for slab in space.slabs.values())

    @property
    def index_bytes(self) -> int:
        """Bytes that the indexes take."""
        return sum(space.index.nbytes for space in self._spaces.values())

    def get(self, namespace: bytes, keys: Sequence[bytes]) -> list[Tensor | None]:
        """Return the tensors, ``None`` where there is no entry. They are views, and must not be written to."""
        self._lookups += len(keys)
        space = self._spaces.get(namespace)
        if space is None or not keys:
            return [None] * len(keys)
        space.last_lookup = self._lookups
        numbers = space.index.find(as_array(keys)).tolist()
        for slab in {number >> 32 for number in numbers if number >= 0}:
            space.slabs[slab].hit = self._lookups
        return [None if number < 0 else _read(space.slabs, number) for number in numbers]

    def holds(self, namespace: bytes, keys: Sequence[bytes]) -> list[bool]:
        """Return whether there is an entry for each key. This does not count as a look-up."""
        space = self._spaces.get(namespace)
        if space is None or not keys:
            return [False] * len(keys)
        return [bool(number >= 0) for number in space.index.find(as_array(keys)).tolist()]

    def reserve(self, namespace: bytes, size: int) -> Place | None:
        """Reserve room for an entry; ``None`` if there is none. The entry is found only after :meth:`commit`.

        Args:
            namespace: The namespace of the entry.
            size: Its size in bytes.
        """
        length = -(-size // _ALIGNMENT) * _ALIGNMENT
        if length > self.budget:
            return None
        space = self._spaces.get(namespace)
        last = next(reversed(space.slabs), None) if space is not None else None
        if space is None or last is None or space.slabs[last].used + length > len(space.slabs[last].data):
            if self.bytes + length > self.budget:
                self._drop_stale()
            if self.bytes + length > self.budget:
                return None
            space = self._spaces.setdefault(namespace, _Space(self._lookups))
            before = max((len(slab.data) for slab in space.slabs.values()), default=0)
            last, self._next = self._next, self._next + 1
            room = max(length, min(self._slab_size, max(_FIRST_SLAB, 2 * before), self.budget - self.bytes))
            space.slabs[last] = _Slab(torch.empty(room, dtype=torch.uint8), 0, self._lookups)
            self.bytes += room
        space.last_lookup, slab = self._lookups, space.slabs[last]
        slab.hit = self._lookups  # so that it is not stale before its entries can be found
        start, slab.used = slab.used, slab.used + length
        return Place(slab.data[start : start + size], last << 32 | start // _ALIGNMENT)

    def commit(self, namespace: bytes, keys: Sequence[bytes], places: Sequence[Place]) -> None:
        """Make entries available after their bytes were written."""
        if keys:
            numbers = np.array([place.number for place in places], dtype=np.int64)
            self._spaces[namespace].index.insert(as_array(keys), numbers)

    def clear(self) -> None:
        """Drop everything."""
        self._spaces, self.bytes = {}, 0

    def _drop_stale(self) -> None:
        patience = max(len(self), _LEAST_LOOKUPS)
        for namespace, space in list(self._spaces.items()):
            if space.last_lookup < self._lookups - patience:
                self.evicted += len(space.index)
                self.bytes -= sum(len(slab.data) for slab in space.slabs.values())
                del self._spaces[namespace]
                continue
            stale = [n for n, slab in space.slabs.items() if slab.hit < self._lookups - _SLAB_PATIENCE * patience]
            if not stale:
                continue
            kept = ~np.isin(space.index.values() >> 32, stale)
            self.evicted += int((~kept).sum())
            space.index.keep(kept)
            for number in stale:
                self.bytes -= len(space.slabs.pop(number).data)


def _read(slabs: dict[int, _Slab], number: int) -> Tensor:
    return slabs[number >> 32].reader.read((number & 0xFFFFFFFF) * _ALIGNMENT)
