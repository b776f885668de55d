"""All towers of a module, with the cache at work on each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import Parameter

from lightning_freeze.cache.checks.patience import Patience
from lightning_freeze.cache.frozen_prefix import FrozenPrefix
from lightning_freeze.cache.identity.cached_towers import CachedTower, boundaries_ahead, find_towers
from lightning_freeze.cache.prefix.entries import PrefixEntries
from lightning_freeze.cache.prefix.pass_state import Store, Tally
from lightning_freeze.cache.prefix.predicted_gain import is_compiled
from lightning_freeze.cache.store.accelerator import AcceleratorTier
from lightning_freeze.layers import LayerStack
from lightning_freeze.layers.discovery.groups import Groups

#: What one schedule holds frozen, the parameters and the modules, now and in each phase to come.
Freezes = Sequence[tuple[Sequence[Parameter], Sequence[nn.Module]]]


@dataclass(frozen=True)
class Keeping:
    """Where and how hidden states are kept.

    Attributes:
        store: RAM and disk.
        accelerator: Where those that were used stay on their device, if anywhere.
        dtype: What to store them in, ``None`` for what was computed.
        budget: Bytes that there is room for, ``None`` for no limit.
        verify: How many batches with hits are compared with a real forward pass for each identity of a prefix.
        trims: Whether padding may be left out.
    """

    store: Store
    accelerator: AcceleratorTier | None
    dtype: torch.dtype | None
    budget: int | None
    verify: int
    trims: bool


class CachedModule:
    """Puts the cache to work on each tower of a module, and follows when the module is changed.

    Args:
        module: The module.
        groups: As for :class:`LayerStack`.
        keeping: Where and how hidden states are kept.
        floors: Number of blocks to take as frozen at least, by the name of the tower.
        on_off: Called when a tower is switched off, as :class:`FrozenPrefix` does.

    Attributes:
        prefixes: The towers that are cached.
        problems: Why others are not.
    """

    def __init__(
        self,
        module: nn.Module,
        groups: Groups | None,
        keeping: Keeping,
        floors: Mapping[str, int],
        on_off: Callable[[FrozenPrefix, str, bool], None],
    ) -> None:
        self.prefixes: list[FrozenPrefix] = []
        self.problems: list[str] = []
        self._module = module
        self._groups = groups
        self._keeping = keeping
        self._floors = floors
        self._on_off = on_off
        self._phases: list[int] | None = None
        self._patience = Patience()
        self._find({})

    @property
    def boundaries(self) -> dict[str, int]:
        """Number of blocks in the frozen prefix of each tower that is not switched off."""
        return {p.tower.name: p.boundary for p in self.prefixes if p.off is None}

    def end_step(self) -> None:
        """A training step, its backward pass included, or a batch of another loop is over."""
        for prefix in self.prefixes:
            prefix.end_step()
        is_outdated = any(prefix.is_outdated for prefix in self.prefixes)
        self._patience.note(is_outdated)
        if is_outdated:
            self._find_anew()

    def look_again(self, thorough: bool) -> None:
        """Notice at the next pass if weights have changed in a way that left no trace."""
        for prefix in self.prefixes:
            prefix.entries.look_again(thorough)

    def foresee(self, phases: list[int], freezes: Callable[[], Sequence[Freezes]]) -> None:
        """Fill, beside the present boundaries, those of phases to come.

        Args:
            phases: The phase that each schedule is in.
            freezes: Asked when one of them has moved: what the schedules hold frozen from now on.
        """
        if phases != self._phases:
            self._phases, ahead = phases, freezes()
            for prefix in self.prefixes:
                prefix.entries.ahead = boundaries_ahead(ahead, prefix.tower)

    def move_inside(self) -> None:
        """Move to a smaller entry where the module's own code goes past the one that was chosen."""
        for number, prefix in enumerate(self.prefixes):
            if prefix.calls or prefix.off is not None or not prefix.tower.boundary():
                continue
            inner = prefix.tower.inner()
            if inner is None:
                prefix.switch_off(
                    f"{type(prefix.tower.entry).__name__}.forward, which runs its layers, is not what the step calls"
                )
                continue
            prefix.close()
            self.prefixes[number] = self._prefix(inner, prefix.tally)
            self.prefixes[number].entries.expected = prefix.entries.expected
            self._phases = None

    def close(self) -> None:
        """Leave the module as it was."""
        for prefix in self.prefixes:
            prefix.close()

    def _find(self, tallies: Mapping[str, Tally]) -> None:
        if next(self._module.parameters(), None) is None:
            self.problems = ["it has no parameters"]
            return
        found, self.problems = find_towers(LayerStack(self._module, groups=self._groups))
        for tower in found:
            if is_compiled(self._module, tower.entry):
                self.problems.append("it is compiled")
                continue
            prefix = self._prefix(tower, tallies.get(tower.name, Tally()))
            prefix.floor = min(self._floors.get(tower.name, 0), len(tower.blocks))
            self.prefixes.append(prefix)

    def _find_anew(self) -> None:
        """Modules or parameters of a tower have been replaced: what it consists of has to be found out again."""
        before = {prefix.tower.name: prefix for prefix in self.prefixes}
        self.close()
        self.prefixes.clear()  # the towers hold this very list
        self._phases = None
        self._find({name: prefix.tally for name, prefix in before.items()})
        for prefix in self.prefixes:
            if (old := before.get(prefix.tower.name)) is not None:
                prefix.off, prefix.entries.expected = old.off, old.entries.expected
            if self._patience.is_over:
                prefix.switch_off("modules or parameters of it are replaced again and again")

    def _prefix(self, tower: CachedTower, tally: Tally) -> FrozenPrefix:
        keeping = self._keeping
        entries = PrefixEntries(tower, keeping.store, keeping.dtype, keeping.accelerator)
        entries.budget, entries.trims = keeping.budget, keeping.trims
        return FrozenPrefix(tower, entries, keeping.verify, self.prefixes, self._on_off, tally)
