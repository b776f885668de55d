"""The fastest tier: hidden states that stay in the memory of the accelerator that computes with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_freeze.cache.store.sizes import bytes_in

_LEAST_LOOKUPS = 256


@dataclass
class _Space:
    """The entries of one namespace, and the time of its latest look-up."""

    last_lookup: int
    rows: dict[bytes, Tensor] = field(default_factory=dict)


class AcceleratorTier:
    """Hidden states of single samples on their device, within a budget; a copy of entries in the tiers below.

    As in the RAM tier, and for the same reason, entries stay until their namespace had no look-up while other
    namespaces had as many look-ups as there are entries.

    Args:
        budget: Bytes.

    Attributes:
        bytes: Bytes in use.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.bytes = 0
        self._lookups = 0
        self._spaces: dict[bytes, _Space] = {}

    def get(self, namespace: bytes, keys: Sequence[bytes]) -> list[Tensor | None]:
        """Return the hidden states, ``None`` where there are none. They must not be written to."""
        self._lookups += len(keys)
        space = self._spaces.get(namespace)
        if space is None:
            return [None] * len(keys)
        space.last_lookup = self._lookups
        return [space.rows.get(key) for key in keys]

    def put(self, namespace: bytes, keys: Sequence[bytes], rows: Sequence[Tensor], dtype: torch.dtype) -> None:
        """Keep copies, as far as there is room. If the device runs out of memory, the tier is emptied and stays empty.

        Args:
            namespace: Their namespace.
            keys: One for each sample.
            rows: The hidden states of the samples, on the device.
            dtype: The dtype to store.
        """
        space = self._spaces.setdefault(namespace, _Space(self._lookups))
        for key, row in zip(keys, rows, strict=True):
            size = row.numel() * dtype.itemsize
            if key in space.rows:
                continue
            if self.bytes + size > self.budget:
                self._drop_stale()
            if self.bytes + size > self.budget:
                return
            try:
                space.rows[key] = row.detach().to(dtype, copy=True)
            except torch.OutOfMemoryError:
                self.clear()
                self.budget = 0
                return
            self.bytes += size

    def clear(self) -> None:
        """Free all memory."""
        self._spaces, self.bytes = {}, 0

    def _drop_stale(self) -> None:
        patience = max(_LEAST_LOOKUPS, sum(len(space.rows) for space in self._spaces.values()))
        for namespace, space in list(self._spaces.items()):
            if space.last_lookup < self._lookups - patience:
                self.bytes -= bytes_in(list(space.rows.values()))
                del self._spaces[namespace]


def has_own_memory(device: torch.device) -> bool:
    """Whether a device has memory apart from that of the RAM tier."""
    return device.type not in ("cpu", "meta")
