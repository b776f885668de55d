"""Runs or skips the frozen prefix of a tower in one forward pass."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from lightning_freeze.cache.checks import self_check
from lightning_freeze.cache.checks.all_ranks import agreed_hidden_states, extra_passes
from lightning_freeze.cache.checks.dry_run import DryRun
from lightning_freeze.cache.checks.few_samples import FewSamples
from lightning_freeze.cache.checks.pass_checks import check_randomness, check_size, compare
from lightning_freeze.cache.identity.cached_towers import CachedTower
from lightning_freeze.cache.identity.keys import KeysOf
from lightning_freeze.cache.identity.unsupported import Unsupported
from lightning_freeze.cache.prefix import break_even, layout
from lightning_freeze.cache.prefix.block_signature import BlockSignature
from lightning_freeze.cache.prefix.break_even import synchronize
from lightning_freeze.cache.prefix.entries import PrefixEntries
from lightning_freeze.cache.prefix.lockstep import Lockstep
from lightning_freeze.cache.prefix.pass_state import KnownPrefix, PassState, Tally
from lightning_freeze.cache.prefix.random_state import RandomState, preserved_random_state
from lightning_freeze.cache.prefix.stand_ins import BlockRecorder, NanBuffer, SkippedBlocks, run_prefix
from lightning_freeze.diagnostics.backward_watch import mark_probe
from lightning_freeze.distributed.sharding import is_sharded


class PrefixExecutor:
    """Lets a pass run for real, then checks and stores what it computes; or lets a pass skip its prefix.

    Args:
        tower: The tower.
        entries: The stored hidden states.
        tally: Where hits are counted.
        keys_of: As for :meth:`Call.keys`.
        lockstep: Runs extra passes.

    Attributes:
        is_probing: Whether the running step checks if padding is read, so that gradients reach below the boundary.
    """

    def __init__(
        self, tower: CachedTower, entries: PrefixEntries, tally: Tally, keys_of: KeysOf, lockstep: Lockstep
    ) -> None:
        self._lockstep = lockstep
        self.is_probing = False
        self._tower = tower
        self._entries = entries
        self._tally = tally
        self._keys_of = keys_of
        self._signatures: list[BlockSignature] | None = None
        self._nan_buffer = NanBuffer()

    @property
    def signatures(self) -> Sequence[BlockSignature]:
        """The signatures of the blocks, empty before they are known."""
        return self._signatures or ()

    # -------------------------------------------------------------------------------------------------- running

    def run(self, state: PassState) -> None:
        """Let the prefix run for real, and record what it computes.

        Args:
            state: The pass.
        """
        state.random_state = RandomState(state.device)
        boundaries = self._entries.boundaries(state.known.boundary)
        embeddings = self._tower.embedding_modules if state.needs_dry_run else ()
        state.recorder = BlockRecorder(
            self._tower, boundaries, self._signatures, lambda b, hidden: self._record(state, b, hidden), embeddings
        )
        # An accelerator is waited for only in the first pass and in those that compare hits, so that others stay fast.
        is_rare = not state.known.is_checked or len(state.missing) < state.call.size
        state.is_timed = is_rare or state.device.type == "cpu"
        if state.is_timed:
            synchronize(state.device)
        state.began = time.perf_counter()

    def _record(self, state: PassState, boundary: int, hidden: Tensor) -> Tensor | None:
        if is_sharded(hidden):
            raise Unsupported("its hidden states are sharded over the ranks (DTensor), as in sequence parallelism")
        if hidden.is_nested:
            raise Unsupported(
                "its blocks take nested tensors, as those of nn.TransformerEncoder do in eval mode; "
                "enable_nested_tensor=False lets their hidden states be stored"
            )
        # A copy, because layers above may change the hidden states in place.
        state.hidden[boundary] = hidden.detach().clone()
        if boundary != state.known.boundary:
            return None
        state.requires_grad = hidden.requires_grad
        if state.is_timed:
            synchronize(hidden.device)
        state.seconds = time.perf_counter() - state.began
        state.used_rng = state.random_state is not None and state.random_state.has_advanced()
        has_positions = hidden.dim() > 2 and hidden.shape[:2] == (state.call.size, state.call.length)
        is_probe = state.checks_padding and has_positions and not hidden.requires_grad
        return self._probe(state, hidden) if is_probe else None

    def _probe(self, state: PassState, hidden: Tensor) -> Tensor:
        """Return the hidden states such that the backward pass shows whether the positions of padding are read."""
        self.is_probing = True
        leaf = hidden.detach().requires_grad_()
        mark_probe(leaf)
        leaf.register_hook(state.observe_gradient)
        with torch.enable_grad():
            return leaf.clone()  # not a leaf, so that it may be changed in place

    def finish(self, state: PassState, output: Any) -> str | None:
        """Check a pass that has run for real, and store what it has computed.

        Args:
            state: The pass.
            output: What the tower returned.

        Returns:
            Why reading the hidden states does not pay, ``None`` if it does.

        Raises:
            Unsupported: If the prefix cannot be skipped.
        """
        known = state.known
        hidden = agreed_hidden_states(self._tower, state, self._lockstep.ranks)
        assert state.recorder is not None
        if self._signatures is None:
            self._signatures = [signature for signature in state.recorder.signatures if signature is not None]
        known.record_layout(hidden, state.call)
        self._tally.samples += state.call.size
        known.has_own_nan = known.has_own_nan or self_check.contains_nan(output)
        mixing_before = known.mixing
        with self._lockstep.passes(extra_passes(self._tower, self._signatures, state, hidden)):
            self._check(state, hidden, output)
        known.record_conditions(state.training_modules)
        if state.needs_dry_run:
            known.checks.add(self._entries.conditions(state))
        loses_trim = state.trims_padding and not known.trims_padding and state.call.has_padding
        state.trims_padding = state.trims_padding and not loses_trim
        if loses_trim or known.mixing != mixing_before:
            state.keys = state.find_keys(self._keys_of)
            state.rows = [None] * state.call.size
        if state.skipped is None:
            self._entries.end_real_pass(state)
        self._entries.record_sample_bytes(state, hidden)
        self._entries.put(state, state.hidden, state.missing, is_whole_batch=True)
        return None if known.is_checked else self._entries.start_reading(state, self._keys_of)

    def _check(self, state: PassState, hidden: Tensor, output: Any) -> None:
        assert self._signatures is not None
        known = state.known
        if state.used_rng and not (known.rng_is_harmless and state.training_modules <= known.training_modules):
            check_randomness(self._tower, self._signatures, state, hidden, self._lockstep)
        if state.skipped is None:
            compare(state, hidden, self._entries.dtype or hidden.dtype)
            if state.needs_dry_run:
                DryRun(self._tower, self._signatures, state, hidden, self._lockstep).run(output)
            check_size(self._tower, self._signatures, state, range(state.call.size), hidden, self._lockstep)

    def check_few(self, state: PassState) -> bool:
        """Check on two samples that the prefix can be skipped, if all samples of the batch were found.

        Args:
            state: The pass.

        Returns:
            Whether the check was passed; if not, the whole batch has to run and decides.
        """
        signatures = FewSamples(self._tower, self._entries, self.run).check(state, self._keys_of)
        self._signatures = self._signatures or signatures
        return signatures is not None

    # ------------------------------------------------------------------------------------------------- skipping

    def skip(self, state: PassState) -> bool:
        """Skip the prefix, after computing the samples that are missing.

        Sets :attr:`PassState.too_slow` if reading turns out not to pay.

        Args:
            state: The pass.

        Returns:
            Whether the missing samples could be computed alone; if not, nothing is skipped.
        """
        known, size, missing = state.known, state.call.size, state.missing
        state.random_state = RandomState(state.device)
        if missing and not self._compute(state, missing):
            return False
        hits = size - len(missing)
        self._tally.samples += size
        self._tally.hits += hits
        self._replace_blocks(state, known, [row for row in state.rows if row is not None], keeps=True)
        reading = 0.0 if missing else time.perf_counter() - state.began
        self._tally.saved_seconds += hits * known.compute_seconds - reading
        if not missing:
            state.too_slow = break_even.why_slow_after_reads(known, reading, size)
        return True

    def skip_blank(self, state: PassState) -> None:
        """Skip the prefix as the other ranks do although the hidden states could not be read; the pass is run again.

        Args:
            state: The pass.
        """
        known, call = state.known, state.call
        assert self._signatures is not None
        shape = (call.size, *((call.length,) if known.has_positions else ()), *known.feature_shape)
        hidden = torch.zeros(shape, dtype=known.dtype, device=known.device)
        state.skipped = SkippedBlocks(self._tower, self._signatures, known.boundary, hidden)
        state.skipped.was_called_differently = True

    def _compute(self, state: PassState, missing: Sequence[int]) -> bool:
        """Compute and store the prefix of some of the samples alone, if the call can be divided."""
        some = state.call.select(missing)
        if some is None or self._signatures is None:
            return False
        computed = self._run_prefix(state, some, missing)
        self._entries.put(state, computed, missing, is_whole_batch=False)
        spans = [state.spans[i] for i in missing] if state.spans else None
        fresh = layout.pack(computed[state.known.boundary], spans)
        for number, row in zip(missing, fresh, strict=True):
            state.rows[number] = row
        return True

    def store_batch(self, state: PassState, missing: Sequence[int]) -> None:
        """Compute the prefix of a whole batch, as a pass that runs does, and store some of its samples.

        The samples that are stored already are computed too: in a smaller batch, kernels may round otherwise.

        Args:
            state: The pass, whose prefix has been checked.
            missing: The samples to store.
        """
        call = state.call
        computed = self._run_prefix(state, (call.args, call.kwargs), range(call.size))
        self._entries.put(state, computed, missing, is_whole_batch=True)

    def _run_prefix(self, state: PassState, inputs: tuple[Any, Any], rows: Sequence[int]) -> dict[int, Tensor]:
        """Compute the prefix of some of the samples, at all boundaries that the pass should record."""
        assert self._signatures is not None
        boundary = state.known.boundary
        with preserved_random_state(state.device) if state.known.rng_is_harmless else nullcontext():
            computed = run_prefix(self._tower, self._signatures, self._entries.boundaries(boundary), inputs)
        check_size(self._tower, self._signatures, state, rows, computed[boundary], self._lockstep)
        return computed

    def skip_from_lower(self, state: PassState) -> bool:
        """Skip the blocks below a lower boundary at which all samples are stored, and let the others run for real.

        Args:
            state: The pass, of whose samples none is stored at its own boundary.

        Returns:
            Whether there is such a boundary; if not, nothing is skipped.
        """
        boundary = state.known.boundary
        for lower in sorted((b for b in self._entries.filled if b < boundary), reverse=True):
            namespace, known = self._entries.identify(lower, state.mode, state.call)
            if not known.is_checked or (state.trims_padding and not known.trims_padding):
                continue
            if (known.mixing is None) != (state.known.mixing is None):  # stored by other keys
                continue
            rows = self._entries.read(state, namespace, known)
            found = [row for row in rows if row is not None]
            if len(found) == len(rows):
                self.run(state)
                self._replace_blocks(state, known, found)
                return True
        return False

    def _replace_blocks(
        self, state: PassState, known: KnownPrefix, rows: Sequence[Tensor], keeps: bool = False
    ) -> None:
        assert self._signatures is not None
        hidden = layout.lay_out(rows, state.spans, state.call.length, known.dtype, known.device, known.memory_order)
        if keeps:
            self._entries.keep_on_device(state, hidden)
            if state.checks_padding:
                hidden = self._probe(state, hidden)
        state.skipped = SkippedBlocks(
            self._tower,
            self._signatures,
            known.boundary,
            hidden,
            known.skipped_embeddings,
            self._nan_buffer,
            known.shape_outputs,
        )
