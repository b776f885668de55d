"""Fills the cache ahead of a fit: each pass computes and stores the frozen prefix, and nothing above it runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from lightning_freeze.cache.cached_module import Freezes
from lightning_freeze.cache.frozen_prefix import FrozenPrefix
from lightning_freeze.cache.identity.cached_towers import CachedTower
from lightning_freeze.cache.identity.unsupported import Unsupported
from lightning_freeze.cache.prefix.pass_state import PassState
from lightning_freeze.errors import ConfigurationError


def boundaries_to_fill(schedules: Sequence[Freezes], tower: CachedTower) -> list[int]:
    """Return the boundaries below the present one that later phases will have, the highest first.

    What an earlier phase has trained is not the same any more when a later one freezes it again, so such a boundary
    cannot be filled ahead.

    Args:
        schedules: The parameters and modules that each schedule keeps frozen, now and in each later phase.
        tower: The tower.
    """
    found: set[int] = set()
    for now, *later in schedules:
        held, freed = {id(p) for p in now[0]}, set[int]()
        for parameters, _ in later:
            freed |= held - {id(p) for p in parameters}
            found.add(tower.boundary(lambda p: p.requires_grad or id(p) in freed))  # noqa: B023  (called at once)
    return sorted(found - {0, tower.boundary()}, reverse=True)


class PrefixStored(Exception):
    """Every prefix of a step has been stored, so the rest of the step is not needed."""


class CacheFilling:
    """Lets the steps of a module store the prefixes of its towers, and ends each step where nothing is left to store.

    Args:
        prefixes: Towers whose prefix was checked in one full step.
        calls_in_step: How often that step called them in all.

    Attributes:
        samples: Samples that were seen, counted at each tower.
        computed: Samples among them that were not stored before.
        bytes_since_flush: Bytes that were stored since the caller last set this to 0.
        trims_padding: Whether padding is left out, as in passes of a fit with a backward pass.
    """

    def __init__(self, prefixes: Sequence[FrozenPrefix], calls_in_step: int) -> None:
        self.samples = self.computed = 0
        self.bytes_since_flush = 0.0
        self.trims_padding = True
        self._calls = 0
        self._calls_in_step = calls_in_step
        self._problem: Exception | None = None
        self._prefixes = list(prefixes)
        self._handles: list[Any] = []

    def __enter__(self) -> CacheFilling:
        for prefix in self._prefixes:
            prefix.takes_over = lambda state, prefix=prefix: self._store(prefix, state)
            # After the hook of the cache, which stores.
            self._handles.append(prefix.tower.entry.register_forward_pre_hook(self._end_pass))
        return self

    def __exit__(self, *_: object) -> None:
        for prefix in self._prefixes:
            prefix.takes_over = None
        for handle in self._handles:
            handle.remove()

    def run(self, step: Callable[[], object]) -> None:
        """Run a step as far as it is needed.

        Args:
            step: Runs a training or validation step.

        Raises:
            ConfigurationError: If a prefix turns out not to be cacheable.
        """
        self._calls = 0
        try:
            step()
        except PrefixStored:
            pass
        except Unsupported as problem:
            raise ConfigurationError(f"The cache cannot be filled: {problem}.") from problem
        for prefix in self._prefixes:
            prefix.end_step()
            if prefix.off is not None:
                raise ConfigurationError(f"The cache cannot be filled for {prefix.tower.label}: {prefix.off}.")

    def _end_pass(self, module: nn.Module, args: Any) -> None:
        if self._problem is not None:
            problem, self._problem = self._problem, None
            raise problem
        self._calls += 1
        if self._calls >= self._calls_in_step:
            raise PrefixStored

    def _store(self, prefix: FrozenPrefix, state: PassState) -> None:
        try:
            self._store_pass(prefix, state)
        except Exception as problem:  # raised by the step: a tower would be switched off, and the run go on
            self._problem = problem

    def _store_pass(self, prefix: FrozenPrefix, state: PassState) -> None:
        known, entries = state.known, prefix.entries
        if not known.is_checked:
            raise Unsupported("its frozen layers have changed since the first step")
        # As in a fit, whose backward pass shows whether anything reads the positions of padding.
        was_read = bool(known.padded_passes) and not known.padding_unread
        trims = known.trims_padding and self.trims_padding and not was_read
        state.trims_padding = known.trims_padding and (trims or not state.call.has_padding)
        state.keys = state.find_keys(prefix.keys_of)
        boundaries = entries.boundaries(known.boundary)
        missing = {n for b in boundaries for n in entries.missing_at(b, state)}
        if missing:
            prefix.executor.store_batch(state, sorted(missing))
        self.samples += state.call.size
        self.computed += len(missing)
        self.bytes_since_flush += len(missing) * known.sample_bytes * len(boundaries)
        if self._calls + 1 < self._calls_in_step:  # another tower may read the output of this one
            state.rows = entries.read(state, state.namespace, known)
            if not prefix.executor.skip(state):
                raise Unsupported("the samples that are missing cannot be computed alone")
