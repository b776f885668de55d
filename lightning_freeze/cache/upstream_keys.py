"""Keys of the outputs of a frozen tower, so that a tower that reads them need not hash them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lightning_freeze.cache.identity.cached_towers import CachedTower
from lightning_freeze.cache.identity.values import tensors_in, version_of
from lightning_freeze.cache.prefix.pass_state import PassState


class UpstreamKeys:
    """The latest outputs of a tower that is frozen as a whole, and the keys of their samples.

    Args:
        tower: The tower.
    """

    def __init__(self, tower: CachedTower) -> None:
        self._tower = tower
        self._versions: list[tuple[int, int]] = []
        self._keys: Sequence[bytes] = ()
        self._tensors: list[Tensor] = []  # referenced, so that no other tensor gets the id of one of them

    def forget(self) -> None:
        """Drop the outputs, which may change from now on."""
        self._versions, self._keys, self._tensors = [], (), []

    def remember(self, state: PassState, output: Any) -> None:
        """Record what a pass has returned, if nothing in the tower trains.

        Args:
            state: The pass.
            output: What the tower returned.
        """
        entry = self._tower.entry
        prefix = {id(p) for step in self._tower.steps[: state.known.boundary + 1] for p in step}
        if any(id(p) not in prefix for p in entry.parameters()) or any(m.training for m in entry.modules()):
            return
        self._tensors = list(tensors_in(output))
        self._versions = [(id(tensor), version_of(tensor)) for tensor in self._tensors]
        name = state.namespace.hex().encode()
        self._keys = [name + key for key in state.keys]

    def keys_of(self, tensor: Tensor) -> Sequence[bytes] | None:
        """Return the keys of the samples that a tensor was computed from, if it is one of the outputs, unchanged.

        Args:
            tensor: Any tensor.
        """
        return self._keys if (id(tensor), version_of(tensor)) in self._versions else None
