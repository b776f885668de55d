"""The stored hidden states of one tower, by the identity of the prefix and the key of the sample."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress

import torch
from torch import Tensor

from lightning_freeze.cache.identity.cached_towers import CachedTower
from lightning_freeze.cache.identity.environment import environment
from lightning_freeze.cache.identity.fingerprint import Fingerprint
from lightning_freeze.cache.identity.keys import Call, KeysOf
from lightning_freeze.cache.identity.module_settings import ModuleSettings
from lightning_freeze.cache.prefix import break_even, layout
from lightning_freeze.cache.prefix.pass_state import Conditions, KnownPrefix, PassState, Store
from lightning_freeze.cache.store.accelerator import AcceleratorTier, has_own_memory
from lightning_freeze.cache.store.sizes import bytes_in


class PrefixEntries:
    """Identifies the prefixes of one tower, and reads and stores their hidden states.

    Args:
        tower: The tower.
        store: The store of all hidden states.
        dtype: The dtype to store, ``None`` for the one that was computed.
        accelerator: The store on the device of the model, if there is one.

    Attributes:
        known: What is known about each prefix.
        filled: The boundaries at which hidden states are stored.
        boundaries_ahead: Lower boundaries that later phases need, the next one first. They are filled in the same pass.
        budget: Bytes that the store may hold, ``None`` for no limit.
        expected_samples: Number of samples in an epoch.
        trims_padding: Whether samples may be stored without padding.
        changing: What has made the latest prefix a new one, empty for the first one.
    """

    def __init__(
        self, tower: CachedTower, store: Store, dtype: torch.dtype | None, accelerator: AcceleratorTier | None = None
    ) -> None:
        self.dtype = dtype
        self.known: dict[bytes, KnownPrefix] = {}
        self.filled: set[int] = set()
        self.boundaries_ahead: Sequence[int] = ()
        self.budget: int | None = None
        self.expected_samples = 0
        self.trims_padding = True
        self.changing = ""
        self._latest: tuple[int, str] | None = None
        self._tower = tower
        self._store = store
        self._accelerator = accelerator
        self._fingerprint = Fingerprint(tower)
        # Whether to recheck the weights in the next pass, and whether thoroughly.
        self._recheck: bool | None = True
        self._settings: dict[int, ModuleSettings] = {}

    def recheck(self, thorough: bool) -> None:
        """Check in the next pass whether the weights have changed in a way that no version counter shows.

        Args:
            thorough: Whether to read all weights again, or some elements of each.
        """
        self._recheck = thorough or bool(self._recheck)
        if thorough:
            for settings in self._settings.values():
                settings.recheck()
            for known in self.known.values():
                known.padded_passes = 0

    def identify(self, boundary: int, mode: str, call: Call) -> tuple[bytes, KnownPrefix]:
        """Return the identity of a prefix, and what is known about it.

        Args:
            boundary: Number of blocks in the prefix.
            mode: The modes of its modules.
            call: The running call.
        """
        self._look_again(boundary)
        device = next(iter(call.tensors.values())).device
        extra = f"{environment(device)}, {mode}, stored as {self.dtype or 'computed'}"
        namespace = self._fingerprint.of(boundary, f"{extra}, {self._settings_at(boundary).digest().hex()}")
        if namespace not in self.known:
            self.changing = self._what_changed(boundary, extra)
            self.known[namespace] = KnownPrefix(boundary, trims_padding=self.trims_padding)
            info: dict[str, str | int] = {
                "model": type(self._tower.entry).__name__,
                "tower": self._tower.name,
                "blocks": boundary,
                "of": len(self._tower.blocks),
                "computed": extra,
                "torch": torch.__version__,
            }
            self._store.declare(namespace, info)
        self._latest = (boundary, extra)
        return namespace, self.known[namespace]

    def _settings_at(self, boundary: int) -> ModuleSettings:
        """Return the settings of a prefix."""
        if boundary not in self._settings:
            inside, around = self._tower.prefix_modules(boundary), self._tower.enclosing_modules()
            self._settings[boundary] = ModuleSettings(inside + around)
        for other, settings in self._settings.items():
            if other > boundary:  # filled ahead, so identified only after the pass that has changed attributes
                self._settings[boundary].ignore_as(settings)
        return self._settings[boundary]

    def needs_weights(self, boundary: int) -> bool:
        """Whether weights have to be read to identify a prefix; all ranks must do that together if it is sharded.

        Args:
            boundary: Number of blocks in the prefix.
        """
        self._look_again(boundary)
        return not self._fingerprint.is_known(boundary)

    def read_weights(self, boundary: int) -> None:
        """Read the weights again; must be called on all ranks if they are sharded.

        Args:
            boundary: Number of blocks in the prefix.
        """
        self._fingerprint.invalidate()
        self._fingerprint.of(boundary, "")

    def _look_again(self, boundary: int) -> None:
        if self._recheck is not None:
            self._fingerprint.recheck(self._recheck, boundary)
            self._recheck = None

    def _what_changed(self, boundary: int, extra: str) -> str:
        """Return what differs from the latest prefix, in words."""
        places = [self._settings[boundary].changed, self._fingerprint.changed]
        self._settings[boundary].changed = self._fingerprint.changed = None
        if self._latest is None:
            return ""
        if (boundary, extra) != self._latest:
            return "the number of frozen blocks" if boundary != self._latest[0] else "a mode or the precision"
        return next((self._tower.path_of(*place) for place in places if place is not None), "")

    def boundaries(self, boundary: int) -> list[int]:
        """Return the boundaries at which a pass should record hidden states.

        Args:
            boundary: The boundary of the pass.
        """
        return [*(b for b in self.boundaries_ahead if b < boundary), boundary]

    def read(self, state: PassState, namespace: bytes, known: KnownPrefix) -> list[Tensor | None]:
        """Return what is stored for the samples of a pass; an entry that does not fit the batch counts as missing.

        Args:
            state: The pass.
            namespace: The identity of the prefix.
            known: What is known about it.
        """
        rows = self._get(namespace, state)
        if not known.is_checked:
            return rows
        found = self.matching(state, rows, known)
        if any(row is not None for row in found):
            self.filled.add(known.boundary)
        return found

    def matching(self, state: PassState, rows: Sequence[Tensor | None], known: KnownPrefix) -> list[Tensor | None]:
        """Return stored samples, with ``None`` in place of those that do not fit the batch.

        Args:
            state: The pass.
            rows: One entry for each sample.
            known: What is known about the layout of the hidden states.
        """
        full_shape = (state.call.length, *known.feature_shape) if known.has_positions and state.call.length else None
        return layout.matching(rows, state.spans, full_shape, self.dtype or known.dtype)

    def _get(self, namespace: bytes, state: PassState) -> list[Tensor | None]:
        if self._accelerator is None or not has_own_memory(state.device):
            return self._store.get(namespace, state.keys)
        kept = self._accelerator.get(namespace, state.keys)
        rows = [row if row is not None and row.device == state.device else None for row in kept]
        missing = [number for number, row in enumerate(rows) if row is None]
        below = self._store.get(namespace, [state.keys[number] for number in missing]) if missing else []
        for number, row in zip(missing, below, strict=True):
            rows[number] = row
        return rows

    def missing_at(self, boundary: int, state: PassState) -> list[int]:
        """Return which samples of a pass are not stored at a boundary.

        Args:
            boundary: The boundary of the pass, or one of a later phase.
            state: The pass.
        """
        namespace, _ = self.identify(boundary, state.mode, state.call)
        return [number for number, row in enumerate(self._store.get(namespace, state.keys)) if row is None]

    def moving_weights(self) -> AbstractContextManager[None]:
        """Return a context in which weights get another place in memory and keep their elements."""
        return self._fingerprint.moving_weights()

    def checked_larger(self, state: PassState, conditions: Conditions) -> KnownPrefix | None:
        """Return the next larger prefix that was checked under the conditions of a pass, ``None`` if none was.

        No layer above it reads anything below it, as was seen when it was skipped.

        Args:
            state: The pass.
            conditions: Its conditions.
        """
        checked = (
            known
            for known in self.known.values()
            if known.boundary > state.known.boundary
            and known.is_checked
            and known.mixing is None
            and state.call.has_same_layout(known.per_sample)
            and any(check.covers(conditions) for check in known.checks)
        )
        return min(checked, key=lambda known: known.boundary, default=None)

    def conditions(self, state: PassState) -> Conditions:
        """Return the conditions of a pass, for the record of a check; reads the settings of all layers.

        Args:
            state: The pass.
        """
        settings = None
        with suppress(Exception):  # attributes of layers that train may be anything, such as sparse tensors
            settings = ModuleSettings(list(self._tower.entry.modules())).digest()
        return Conditions(settings, state.training_modules, torch.is_grad_enabled())

    def has_lower(self, boundary: int) -> bool:
        """Whether hidden states are stored at any boundary below the given one."""
        return any(lower < boundary for lower in self.filled)

    def keep_on_device(self, state: PassState, hidden: Tensor) -> None:
        """Keep the hidden states of a pass on their device, if there is a store for that.

        Args:
            state: The pass.
            hidden: The hidden states of the batch.
        """
        if self._accelerator is None or not has_own_memory(hidden.device):
            return
        dtype = self.dtype or state.known.dtype
        self._accelerator.put(state.namespace, state.keys, layout.cut(hidden, state.spans), dtype)

    def put(self, state: PassState, computed: dict[int, Tensor], rows: Sequence[int], is_whole_batch: bool) -> None:
        """Store samples at the boundary of a pass, and at those of later phases.

        Args:
            state: The pass.
            computed: Hidden states by boundary.
            rows: The samples to store.
            is_whole_batch: Whether the hidden states are those of all samples, rather than of the given ones alone.
        """
        shows_extent = state.needs_dry_run and state.call.size > 1 and state.known.mixing is None
        extent = computed[state.known.boundary].numel() if shows_extent else 0
        if extent:
            self._store.note(state.namespace, extent)
        if not rows:
            return
        keys = [state.keys[i] for i in rows]
        spans = state.spans if state.spans is None or is_whole_batch else [state.spans[i] for i in rows]
        for boundary in (state.known.boundary, *(self._affordable(state.known) if state.mode == "eval" else ())):
            if boundary not in computed:
                continue
            packed = layout.pack(computed[boundary], spans, self.dtype)
            packed = [packed[i] for i in rows] if is_whole_batch else packed
            if boundary == state.known.boundary:
                namespace = state.namespace
            elif self._tower.is_sharded and self.needs_weights(boundary):
                continue
            else:
                namespace, _ = self.identify(boundary, "eval", state.call)
                if extent:
                    self._store.note(namespace, extent)
            entries = list(zip(keys, packed, strict=True))
            if self.dtype == torch.float16:  # values beyond its range would become infinite
                entries = [(key, row) for key, row in entries if bool(torch.isfinite(row).all())]
            self._store.put(namespace, [key for key, _ in entries], [row for _, row in entries])
            self.filled.add(boundary)

    def is_independent(self, state: PassState) -> bool:
        """Whether samples were seen to be independent in a batch at least as large, here or in an earlier run."""
        return sum(row.numel() for row in state.rows if row is not None) <= self._store.noted(state.namespace)

    def _affordable(self, known: KnownPrefix) -> Sequence[int]:
        """Return the lower boundaries for which there is room beside the present one."""
        ahead = self.boundaries(known.boundary)[:-1]
        needed = max(1.0, known.sample_bytes * self.expected_samples)
        return ahead if self.budget is None else ahead[: max(0, int(self.budget / needed) - 1)]

    def end_real_pass(self, state: PassState) -> None:
        """Learn from a pass that ran all blocks: attributes that it changed are no settings, and its time counts.

        Args:
            state: The pass.
        """
        self._settings[state.known.boundary].end_real_pass()
        if state.known.is_checked and state.is_timed:
            state.known.compute_seconds = min(state.known.compute_seconds, state.seconds / state.call.size)
            if state.device.type != "cpu":  # the first pass on an accelerator may include its start-up
                state.known.first_compute_seconds = min(state.known.first_compute_seconds, state.known.compute_seconds)

    def record_sample_bytes(self, state: PassState, hidden: Tensor) -> None:
        """Record how many bytes a sample takes, the first time."""
        if not state.known.sample_bytes:
            state.known.sample_bytes = bytes_in(layout.pack(hidden, state.spans, self.dtype)) / state.call.size

    def start_reading(self, state: PassState, keys_of: KeysOf) -> str | None:
        """Use a prefix that has been checked from now on, if reading it pays.

        Args:
            state: The pass, whose samples have been stored.
            keys_of: As for :meth:`Call.keys`.

        Returns:
            Why reading does not pay, ``None`` if it does.
        """
        self.time_reading(state, state.known, keys_of)
        state.known.mark_checked(state.seconds / state.call.size)
        return break_even.why_slow(state.known)

    def time_reading(self, state: PassState, known: KnownPrefix, keys_of: KeysOf) -> None:
        """Measure how long reading a batch takes; see :mod:`~lightning_freeze.cache.prefix.break_even`."""
        break_even.time_reading(self._store, state, known, keys_of)

    def real_pass(self, boundary: int) -> AbstractContextManager[None]:
        """Return a context in which a real forward pass runs: attributes that it changes are no settings.

        Args:
            boundary: Number of blocks in the prefix, which must have been identified.
        """
        return self._settings[boundary].real_pass()
