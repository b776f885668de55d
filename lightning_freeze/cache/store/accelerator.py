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
    """What is held of one namespace, and when it was last looked into."""

    looked: int
    rows: dict[bytes, Tensor] = field(default_factory=dict)


class AcceleratorTier:
    """Hidden states of single samples on their device, within a budget; a copy of what the tiers below hold.

    It keeps what it has, as the RAM tier does and for the same reason, until nobody has looked into a namespace for as
    many look-ups as there are entries.

    Args:
        budget: Bytes.

    Attributes:
        bytes: What is taken.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.bytes = 0
        self._clock = 0
        self._spaces: dict[bytes, _Space] = {}

    def get(self, namespace: bytes, keys: Sequence[bytes]) -> list[Tensor | None]:
        """Return the hidden states, ``None`` where there are none. Nobody may write to them."""
        self._clock += len(keys)
        space = self._spaces.get(namespace)
        if space is None:
            return [None] * len(keys)
        space.looked = self._clock
        return [space.rows.get(key) for key in keys]

    def put(self, namespace: bytes, keys: Sequence[bytes], rows: Sequence[Tensor], dtype: torch.dtype) -> None:
        """Keep copies, as far as there is room. Where the device has no room left, everything is given back for good.

        Args:
            namespace: Whose they are.
            keys: One for each sample.
            rows: On the device.
            dtype: What to keep them in.
        """
        space = self._spaces.setdefault(namespace, _Space(self._clock))
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
        """Give everything back."""
        self._spaces, self.bytes = {}, 0

    def _drop_stale(self) -> None:
        patience = max(_LEAST_LOOKUPS, sum(len(space.rows) for space in self._spaces.values()))
        for namespace, space in list(self._spaces.items()):
            if space.looked < self._clock - patience:
                self.bytes -= bytes_in(list(space.rows.values()))
                del self._spaces[namespace]


def has_own_memory(device: torch.device) -> bool:
    """Whether a device has memory apart from that of the RAM tier."""
    return device.type not in ("cpu", "meta")
