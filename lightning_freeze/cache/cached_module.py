"""All towers of a module, with the cache attached to each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

from torch import nn
from torch.nn import Parameter

from lightning_freeze.cache.checks.eligibility import is_compiled_tower
from lightning_freeze.cache.checks.repeat_limit import RepeatLimit
from lightning_freeze.cache.decision import Decision, Outcome
from lightning_freeze.cache.frozen_prefix import FrozenPrefix
from lightning_freeze.cache.identity.cached_towers import CachedTower, boundaries_ahead, find_towers, frozen_modules
from lightning_freeze.cache.identity.unsupported import reason_of
from lightning_freeze.cache.offload import WeightOffload
from lightning_freeze.cache.prefix.entries import PrefixEntries
from lightning_freeze.cache.prefix.pass_state import Tally
from lightning_freeze.cache.storage import Storage
from lightning_freeze.distributed import Ranks, reshard
from lightning_freeze.distributed.sharding import computation, gathers
from lightning_freeze.errors import ConfigurationError
from lightning_freeze.layers import LayerStack
from lightning_freeze.layers.discovery.groups import Groups

#: The parameters and modules that one schedule keeps frozen, now and in each later phase.
Freezes = Sequence[tuple[Sequence[Parameter], Sequence[nn.Module]]]


class CachedModule:
    """Attaches the cache to each tower of a module, and follows changes of the module.

    Args:
        module: The module.
        groups: As for :class:`LayerStack`.
        storage: Where and how hidden states are stored.
        min_boundaries: Number of blocks that count as frozen in any case, by the name of the tower.
        on_switch_off: Called when a tower is switched off; see :class:`FrozenPrefix`.
        ranks: All ranks if they must run the same layers, because the module is sharded.

    Attributes:
        prefixes: The towers that are cached.
        problems: Why other towers are not, by the name of the tower.
    """

    def __init__(
        self,
        module: nn.Module,
        groups: Groups | None,
        storage: Storage,
        min_boundaries: Mapping[str, int],
        on_switch_off: Callable[[FrozenPrefix, str, bool], None],
        ranks: Ranks | None = None,
    ) -> None:
        self._ranks = ranks
        self.prefixes: list[FrozenPrefix] = []
        self.problems: dict[str, str] = {}
        self._module = module
        self._groups = groups
        self._storage = storage
        self._min_boundaries = min_boundaries
        self._on_switch_off = on_switch_off
        self._phases: list[int] | None = None
        self._changes = RepeatLimit()
        self._left_out: dict[str, list[Parameter]] = {}
        self._find({})

    @property
    def frozen_problems(self) -> dict[str, str]:
        """For each wholly frozen tower that cannot be cached, the reason."""
        frozen = (label for label, own in self._left_out.items() if own and not any(p.requires_grad for p in own))
        return {label: self.problems[label] for label in frozen}

    @property
    def frozen_parts(self) -> dict[str, str]:
        """For each other wholly frozen part that is computed in each step, the reason."""
        found: dict[str, str] = {}
        known = {id(p) for own in self._left_out.values() for p in own}
        for prefix in self.prefixes:
            tower, decision = prefix.tower, prefix.decision
            # A pooler behind cached blocks belongs to their tower.
            own = tower.entry.parameters() if prefix.boundary else (p for step in tower.steps[1:] for p in step)
            known |= {id(p) for p in own}
            is_frozen = not any(p.requires_grad for step in tower.steps[1:] for p in step)
            if is_frozen and not prefix.boundary and decision is not None and prefix.off is None:
                found[tower.label] = decision.reason
        parts = frozen_modules(self._module, known) if known else []
        return found | dict.fromkeys(parts, "it is no stack of blocks that could be skipped")

    @property
    def boundaries(self) -> dict[str, int]:
        """Number of blocks in the frozen prefix of each tower that is not switched off."""
        return {p.tower.name: p.boundary for p in self.prefixes if p.off is None}

    def explain(self) -> dict[str, Decision]:
        """Return the decision at the latest pass of each tower, and why other towers are not cached."""
        found = {name: Decision(Outcome.LEAVE_ALONE, reason) for name, reason in self.problems.items()}
        return found | {p.tower.name: p.decision for p in self.prefixes if p.decision is not None}

    def end_step(self) -> None:
        """End a training step, after its backward pass, or a batch of another loop."""
        for prefix in self.prefixes:
            prefix.end_step()
        is_outdated = any(prefix.is_outdated for prefix in self.prefixes)
        self._changes.record(is_outdated)
        if is_outdated:
            self._find_again()

    def recheck(self, thorough: bool) -> None:
        """Check in the next pass whether weights have changed in a way that no version counter shows.

        Args:
            thorough: Whether to read all weights again, or some elements of each.
        """
        for prefix in self.prefixes:
            prefix.entries.recheck(thorough)

    def fill_ahead(self, phases: list[int], freezes: Callable[[], Sequence[Freezes]]) -> None:
        """Fill the boundaries of later phases together with the present ones.

        Args:
            phases: The phase that each schedule is in.
            freezes: Returns what the schedules keep frozen from now on; called when a phase has changed.
        """
        if phases != self._phases:
            self._phases, ahead = phases, freezes()
            for prefix in self.prefixes:
                prefix.entries.boundaries_ahead = boundaries_ahead(ahead, prefix.tower)

    def expect(self, samples: int) -> None:
        """Prepare for an epoch.

        Args:
            samples: About how many samples it has.
        """
        for prefix in self.prefixes:
            prefix.entries.expected_samples = samples

    def use_smaller_entries(self) -> None:
        """Change to a smaller entry for each tower whose entry was not called in the step."""
        for number, prefix in enumerate(self.prefixes):
            if prefix.calls or prefix.off is not None or not prefix.tower.boundary():
                continue
            if self._ranks is not None:
                reshard(self._module)  # so that the parameters are those that the optimizer knows
            smaller = prefix.tower.with_smaller_entry()
            if smaller is None:
                prefix.switch_off(
                    f"{type(prefix.tower.entry).__name__}.forward, which runs its layers, is not what the step calls"
                )
                continue
            prefix.close()
            self.prefixes[number] = self._prefix(smaller, prefix.tally)
            self.prefixes[number].entries.expected_samples = prefix.entries.expected_samples
            self._phases = None

    def end_training_batch(self) -> None:
        """End a training batch: weights that are not needed may be offloaded."""
        for prefix in self.prefixes:
            prefix.end_training_batch()

    def restore_weights(self) -> None:
        """Bring offloaded weights back, before they change or the run ends."""
        for prefix in self.prefixes:
            if prefix.offload is not None:
                prefix.offload.restore(is_needed=False)

    def close(self) -> None:
        """Remove all hooks and stand-ins from the module."""
        with ExitStack() as closing:  # if one fails, the others are closed all the same
            for prefix in reversed(self.prefixes):
                closing.callback(prefix.close)

    def _find(self, tallies: Mapping[str, Tally]) -> None:
        if next(self._module.parameters(), None) is None:
            self.problems = {"": "it has no parameters"}
            return
        if self._ranks is not None:
            reshard(self._module)  # so that the parameters are those that the optimizer knows
        try:
            stack = LayerStack(self._module, groups=self._groups)
            found, self.problems = find_towers(stack)
        except ConfigurationError:
            raise
        except Exception as problem:
            self.problems = {"": reason_of(problem)}
            return
        for tower in found:
            if is_compiled_tower(self._module, tower.entry):
                self.problems[tower.name] = "it is compiled"
                continue
            prefix = self._prefix(tower, tallies.get(tower.name, Tally()))
            prefix.min_boundary = min(self._min_boundaries.get(tower.name, 0), len(tower.blocks))
            self.prefixes.append(prefix)
        self._left_out = {
            label: [p for layer in stack if layer.is_block and layer.tower == label for p in layer.parameters()]
            for label in self.problems
        }

    def _find_again(self) -> None:
        """Analyse the module again after modules or parameters of a tower were replaced."""
        before = {prefix.tower.name: prefix for prefix in self.prefixes}
        self.close()
        self.prefixes.clear()  # in place, because each tower refers to the list
        self._phases = None
        self._find({name: prefix.tally for name, prefix in before.items()})
        for prefix in self.prefixes:
            if (old := before.get(prefix.tower.name)) is not None:
                prefix.off, prefix.decision = old.off, old.decision
                prefix.entries.expected_samples = old.entries.expected_samples
            if self._changes.is_exceeded:
                prefix.switch_off("modules or parameters of it are replaced again and again")

    def _prefix(self, tower: CachedTower, tally: Tally) -> FrozenPrefix:
        storage = self._storage
        tower.is_sharded = self._ranks is not None
        if tower.is_sharded:
            tower.gathers = gathers(self._module)
            tower.computation = computation(tower.entry, self._module)
        entries = PrefixEntries(tower, storage.store, storage.dtype, storage.accelerator)
        entries.budget, entries.trims_padding = storage.budget, storage.trims_padding
        if tower.is_sharded:
            # Whether padding is read shows in the gradient of hidden states. Sharded modules exchange gradients in
            # another order where hidden states require one, so ranks with and without padding would not match.
            entries.trims_padding = False
        prefix = FrozenPrefix(tower, entries, storage.verify, self.prefixes, self._on_switch_off, tally, self._ranks)
        if storage.offload:
            prefix.offload = WeightOffload(self._module, entries, storage.folder)
            if tower.is_sharded:
                prefix.offload.problem = "each rank holds a part of them"
        return prefix
