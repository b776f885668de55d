"""What the outputs of a frozen tower were computed from: a tower above needs no hash of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lightning_freeze.cache.identity.cached_towers import CachedTower
from lightning_freeze.cache.identity.values import tensors_in, version_of
from lightning_freeze.cache.prefix.pass_state import Pass


class Outputs:
    """The latest outputs of a tower, if it is frozen as a whole, and the keys of their samples.

    Args:
        tower: The tower.
    """

    def __init__(self, tower: CachedTower) -> None:
        self._tower = tower
        self._seen: list[tuple[int, int]] = []
        self._keys: Sequence[bytes] = ()
        self._tensors: list[Tensor] = []  # held, so that no other tensor is given the identity of one of them

    def forget(self) -> None:
        """They may be changed from now on, or are of no use any more."""
        self._seen, self._keys, self._tensors = [], (), []

    def remember(self, this: Pass, output: Any) -> None:
        """Note what a pass has returned, if nothing in it trains.

        Args:
            this: The pass.
            output: What the tower returned.
        """
        entry = self._tower.entry
        below = {id(p) for step in self._tower.steps[: this.known.boundary + 1] for p in step}
        if any(id(p) not in below for p in entry.parameters()) or any(m.training for m in entry.modules()):
            return
        self._tensors = list(tensors_in(output))
        self._seen = [(id(tensor), version_of(tensor)) for tensor in self._tensors]
        name = this.namespace.hex().encode()
        self._keys = [name + key for key in this.keys]

    def keys_of(self, tensor: Tensor) -> Sequence[bytes] | None:
        """The keys of the samples that a tensor was computed from, if it is one of these outputs, unchanged."""
        return self._keys if (id(tensor), version_of(tensor)) in self._seen else None
