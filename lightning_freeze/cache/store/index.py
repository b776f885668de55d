"""The index of entries by key: a hash table in flat arrays. It takes 34 to 51 bytes a key; a dict takes over 150."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

KEY_BYTES = 16
_EMPTY = -1
_MOST_FULL = 0.7
_GROWTH = 1.5
_FIRST = 256
# Odd constants of the golden ratio and of xxhash: keys are hashes already, but need not be.
_FACTORS = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F)
_MIX, _ALL = np.array(_FACTORS, dtype=np.uint64), 2**64 - 1

Keys = NDArray[np.uint64]
Values = NDArray[np.int64]


def as_array(keys: Sequence[bytes]) -> Keys:
    """Return keys of 16 bytes as an array of shape (keys, 2).

    Raises:
        ValueError: If a key has another length.
    """
    wrong = next((key for key in keys if len(key) != KEY_BYTES), None)
    if wrong is not None:
        raise ValueError(f"A key has {len(wrong)} bytes: expected {KEY_BYTES}.")
    return np.frombuffer(b"".join(keys), dtype=np.uint64).reshape(-1, 2)


class KeyIndex:
    """Maps keys of 128 bits to numbers that are not negative. Open addressing with linear probing.

    A slot takes 24 bytes. Between 47% and 70% of the slots are in use, so a key takes 34 to 51 bytes, and up to 86
    while the table grows.
    """

    def __init__(self) -> None:
        self._clear(_FIRST)

    def __len__(self) -> int:
        return self._used

    @property
    def nbytes(self) -> int:
        """Bytes that the table takes."""
        return self._keys.nbytes + self._values.nbytes

    def find(self, keys: Keys) -> Values:
        """Return the number of each key, -1 for a key that is not in the index."""
        # One by one: for a batch of samples, array operations would take ten times as long.
        table, values, size = self._keys.data, self._values.data, len(self._values)
        found = []
        for low, high in keys.tolist():
            # As in _slots.
            mixed = (low * _FACTORS[0] & _ALL) ^ ((high * _FACTORS[1] & _ALL) >> 7)
            slot = ((mixed >> 32) * size) >> 32
            number = values[slot]
            while number != _EMPTY and (table[slot, 0] != low or table[slot, 1] != high):
                slot = (slot + 1) % size
                number = values[slot]
            found.append(number)
        return np.array(found, dtype=np.int64)

    def insert(self, keys: Keys, values: Values) -> None:
        """Add keys, or replace their numbers."""
        if self._used + len(keys) > _MOST_FULL * len(self._values):
            self._grow(self._used + len(keys))
        slots, left = self._slots(keys), np.arange(len(keys))
        while left.size:
            at = slots[left]
            is_empty = self._values[at] == _EMPTY
            empty, wanting = at[is_empty], left[is_empty]
            # Of several keys that want the same empty slot, the last one gets it; the others find it taken.
            self._values[empty] = wanting
            won = self._values[empty] == wanting
            self._keys[empty[won]] = keys[wanting[won]]
            self._used += int(np.count_nonzero(won))
            same = (self._keys[at] == keys[left]).all(1)
            self._values[at[same]] = values[left[same]]
            left = left[~same]
            slots[left] = (slots[left] + 1) % len(self._values)

    def keep(self, kept: NDArray[np.bool_]) -> None:
        """Drop keys.

        Args:
            kept: For each of :meth:`values`, whether it stays.
        """
        used = self._values != _EMPTY
        keys, values = self._keys[used][kept], self._values[used][kept]
        self._clear(max(_FIRST, int(len(values) / _MOST_FULL * 1.2)))
        self.insert(keys, values)

    def values(self) -> Values:
        """Return the numbers of all keys, in no particular order."""
        found: Values = self._values[self._values != _EMPTY]
        return found

    def _slots(self, keys: Keys) -> Values:
        mixed = keys * _MIX
        high = (mixed[:, 0] ^ (mixed[:, 1] >> np.uint64(7))) >> np.uint64(32)
        slots: Values = ((high * np.uint64(len(self._values))) >> np.uint64(32)).astype(np.int64)
        return slots

    def _grow(self, needed: int) -> None:
        used = self._values != _EMPTY
        keys, values = self._keys[used], self._values[used]
        self._clear(int(max(_GROWTH * len(self._values), needed / _MOST_FULL + 1)))
        self.insert(keys, values)

    def _clear(self, slots: int) -> None:
        self._keys = np.zeros((slots, 2), dtype=np.uint64)
        self._values = np.full(slots, _EMPTY, dtype=np.int64)
        self._used = 0
