"""A cheaper check for a batch whose samples were all found: two of its samples stand for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import nn

from lightning_freeze.cache.checks import self_check, side_effects
from lightning_freeze.cache.checks.dry_run import DryRun
from lightning_freeze.cache.checks.eligibility import can_check_padding
from lightning_freeze.cache.checks.pass_checks import compare, hidden_states_of
from lightning_freeze.cache.identity.cached_towers import CachedTower
from lightning_freeze.cache.identity.keys import KeysOf
from lightning_freeze.cache.prefix import break_even
from lightning_freeze.cache.prefix.block_signature import BlockSignature
from lightning_freeze.cache.prefix.entries import PrefixEntries
from lightning_freeze.cache.prefix.lockstep import Lockstep
from lightning_freeze.cache.prefix.pass_state import KnownPrefix, PassState
from lightning_freeze.cache.prefix.predicted_gain import Work, count_flops
from lightning_freeze.cache.prefix.random_state import RandomState
from lightning_freeze.cache.prefix.stand_ins import run_until
from lightning_freeze.cache.store.sizes import bytes_in

#: In smaller batches, checking two samples is no less work than computing and checking all.
_MIN_BATCH = 4


def few_samples_suffice(state: PassState) -> bool:
    """Whether two samples may be checked in place of the whole batch.

    This is not done

    - on an accelerator, which computes a whole batch in hardly more time;
    - where padding is left out, which only the backward pass of a whole batch shows to be right;
    - inside of activation checkpointing, which counts the tensors that are saved for the backward pass;
    - in distributed training, where other ranks may run the whole batch and wait in its forward passes.

    Args:
        state: The pass.
    """
    return (
        state.call.size >= _MIN_BATCH
        and not state.missing
        and state.spans is None
        and state.device.type == "cpu"
        and (can_check_padding() or not torch.is_grad_enabled())
        and not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1)
    )


class FewSamples:
    """Runs a tower on two samples of a batch, with and without its prefix, and compares the results.

    Where a larger prefix was checked before, as in an earlier phase of gradual unfreezing, both passes end at its
    boundary: nothing above it reads anything below it.

    Args:
        tower: The tower.
        entries: The hidden states that are stored.
        run: Lets a pass run for real and records what it computes.
    """

    def __init__(self, tower: CachedTower, entries: PrefixEntries, run: Callable[[PassState], None]) -> None:
        self._tower = tower
        self._entries = entries
        self._run = run

    def check(self, state: PassState, keys_of: KeysOf) -> list[BlockSignature] | None:
        """Check two samples, and record what may be skipped as after a whole batch.

        Args:
            state: The pass, whose samples were all found.
            keys_of: As for :meth:`Call.keys`.

        Returns:
            The signatures of the blocks; ``None``, with nothing recorded, if the check was not passed.
        """
        # Two samples cannot show that samples are independent in larger batches (one with a capacity, for instance).
        few = _two_samples(state) if self._entries.is_independent(state) else None
        if few is None:
            return None
        conditions = self._entries.conditions(state)
        larger = self._entries.checked_larger(few, conditions)
        try:
            signatures = self._compare(few, state.call.size, larger)
        except Exception:  # the whole batch will show whether the tower or only the batch size is the problem
            return None
        known, found = few.known, self._entries.matching(state, state.rows, few.known)
        if signatures is None or None in found:
            return None
        known.per_sample = state.call.per_sample
        known.sample_bytes = known.sample_bytes or bytes_in([row for row in found if row is not None]) / state.call.size
        known.record_conditions(state.training_modules)
        known.checks.add(conditions)
        if not known.is_checked:
            self._entries.time_reading(state, known, keys_of)
            # The whole batch takes at least as long as two of its samples. If reading takes longer than these, run it.
            if break_even.is_slow(known, state.call.size, few.seconds):
                return None
            # The time for each sample is about the same in larger batches, except in models too small to matter.
            known.mark_checked(few.seconds / few.call.size)
        vars(state.known).update(vars(known))
        state.rows = found
        self._entries.filled.add(known.boundary)
        return signatures

    def _compare(self, few: PassState, size: int, larger: KnownPrefix | None) -> list[BlockSignature] | None:
        known, call, entry = few.known, few.call, self._tower.entry
        trains = torch.is_grad_enabled()  # as in the pass itself, to notice gradients that flow into the prefix
        end = None if larger is None else larger.boundary
        with (
            side_effects.isolated(entry, RandomState(few.device), few.device),
            torch.set_grad_enabled(trains),
            _preserved_gradients(entry),
        ):
            snapshot = self_check.AttributeSnapshot(self._tower.prefix_modules(known.boundary))
            self._run(few)
            assert few.recorder is not None
            with few.recorder, self._entries.real_pass(known.boundary):
                output, count = count_flops(lambda: run_until(self._tower, end, (call.args, call.kwargs)))
            if snapshot.has_changed(by_content=True):
                return None
        hidden = hidden_states_of(self._tower, few)
        if few.used_rng or hidden.device.type != "cpu":  # random effects show better in many samples than in two
            return None
        signatures = [signature for signature in few.recorder.signatures if signature is not None]
        known.record_layout(hidden, call)
        above = larger is not None and larger.has_own_nan
        known.has_own_nan = known.has_own_nan or above or self_check.contains_nan(output)
        # What is stored was computed among other samples, so this comparison also shows that samples are independent.
        compare(few, hidden, self._entries.dtype or hidden.dtype)
        known.independence_checked = True
        known.sizes |= {call.size, size}
        dry_run = DryRun(self._tower, signatures, few, hidden, Lockstep(), larger)
        dry_run.check_skipping(output)
        known.work.prefix = count / call.size + dry_run.rest_above - known.work.rest
        return None if few.missing else signatures


@contextmanager
def _preserved_gradients(module: nn.Module) -> Iterator[None]:
    """Restore the gradients of a module on exit, in case its forward pass runs a backward pass."""
    before = [(parameter, parameter.grad) for parameter in module.parameters()]
    for parameter, _ in before:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in before:
            parameter.grad = gradient


def _two_samples(state: PassState) -> PassState | None:
    """Return a pass of two different samples; one would not show what is computed for each sample and what for all."""
    other = next((i for i in reversed(range(state.call.size)) if state.keys[i] != state.keys[0]), state.call.size - 1)
    rows = [0, other]
    call = state.call.subset(rows)
    if call is None:
        return None
    known = replace(state.known, work=Work(0, 0), shape_outputs={}, sizes={*state.known.sizes})
    keys, stored = [state.keys[i] for i in rows], [state.rows[i] for i in rows]
    return replace(state, call=call, known=known, keys=keys, rows=stored, needs_dry_run=True, hidden={})
