"""A batch that was found as a whole is checked on two of its samples, at a fraction of what all of it would take."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightning_freeze.cache.checks import self_check, side_effects
from lightning_freeze.cache.checks.dry_run import Rehearsal, compare, taken_hidden
from lightning_freeze.cache.checks.eligibility import can_prove
from lightning_freeze.cache.identity.cached_towers import CachedTower
from lightning_freeze.cache.prefix import break_even
from lightning_freeze.cache.prefix.block_signature import BlockForm
from lightning_freeze.cache.prefix.entries import PrefixEntries
from lightning_freeze.cache.prefix.pass_state import Pass
from lightning_freeze.cache.prefix.predicted_gain import Work, flops
from lightning_freeze.cache.prefix.random_state import Randomness
from lightning_freeze.cache.store.sizes import bytes_in

#: Samples of a batch from which on two of them are less work than computing and checking all.
_LEAST = 4


def can_stand_for(this: Pass) -> bool:
    """Whether a few samples may stand for the batch of a pass.

    Not on an accelerator, which computes a whole batch in hardly more time; not where padding is left out, which only
    the backward pass of a whole batch shows to be right; not where something counts what is kept for that pass; and not
    beside other ranks, which may compute a whole batch, with another number of forward passes to meet in.
    """
    return (
        this.call.size >= _LEAST
        and not this.missing
        and this.spans is None
        and this.device.type == "cpu"
        and (can_prove() or not torch.is_grad_enabled())
        and not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1)
    )


class FewSamples:
    """Runs a tower on a few samples of a batch, really and without its prefix, and compares.

    Args:
        tower: The tower.
        entries: The hidden states that are stored.
        run: Lets a pass run for real and takes what it computes.
    """

    def __init__(self, tower: CachedTower, entries: PrefixEntries, run: Callable[[Pass], None]) -> None:
        self._tower = tower
        self._entries = entries
        self._run = run

    def check(self, this: Pass, origin: Callable[[Tensor], Sequence[bytes] | None]) -> list[BlockForm] | None:
        """Check on two samples, and note what may be skipped, as a whole batch would.

        Args:
            this: The pass, whose samples were all found.
            origin: As for :meth:`Call.keys`.

        Returns:
            The forms of the blocks; ``None``, with nothing noted, if anything is not as it should be.
        """
        # That samples do not depend on others must have been seen in a whole batch: it may have room for two of them.
        few = _few(this) if self._entries.is_independent(this) else None
        if few is None:
            return None
        try:
            forms = self._compare(few)
        except Exception:  # the whole batch will show whether it is the tower or the size that it does not bear
            return None
        known, found = few.known, self._entries.fitting(this, this.rows, few.known)
        if forms is None or None in found:
            return None
        known.per_sample = this.call.per_sample
        known.size = known.size or bytes_in([row for row in found if row is not None]) / this.call.size
        known.include(this.loud)
        if not known.checked:
            self._entries.time_reading(this, known, origin)
            # The whole batch takes at least as long as two of its samples. If that does not tell, it runs.
            if break_even.is_slow(known, this.call.size, few.seconds):
                return None
            # A sample takes about as long among two as among many, but in models so small that it does not matter.
            known.begin(few.seconds / few.call.size)
        vars(this.known).update(vars(known))
        this.rows = found
        self._entries.filled.add(known.boundary)
        return forms

    def _compare(self, few: Pass) -> list[BlockForm] | None:
        known, call, entry = few.known, few.call, self._tower.entry
        trains = torch.is_grad_enabled()  # as the pass will: only then it shows if something that trains feeds into it
        with (
            side_effects.rehearsal(entry, Randomness(few.device), few.device),
            torch.set_grad_enabled(trains),
            _own_gradients(entry),
        ):
            kept = self_check.Kept(self._tower.prefix_modules(known.boundary))
            self._run(few)
            assert few.watch is not None
            with few.watch, self._entries.passing(known.boundary):
                output, count = flops(lambda: entry.forward(*call.args, **call.kwargs))
            if kept.differ(by_content=True):
                return None
        hidden = taken_hidden(self._tower, few)
        if few.drew or hidden.device.type != "cpu":  # of random numbers many samples show more than two
            return None
        forms = [form for form in few.watch.forms if form is not None]
        known.describe(hidden, call)
        known.is_nan = known.is_nan or self_check.has_nan(output)
        # Their hidden states were computed among other samples: that these are independent is seen here too.
        compare(few, hidden, self._entries.dtype or hidden.dtype)
        known.alone = False
        Rehearsal(self._tower, forms, few, hidden).skip(output)
        known.work.prefix = count / call.size - known.work.rest
        return None if few.missing else forms


@contextmanager
def _own_gradients(module: nn.Module) -> Iterator[None]:
    """Leave the gradients of a module as they are, whatever backward passes it makes itself."""
    before = [(parameter, parameter.grad) for parameter in module.parameters()]
    for parameter, _ in before:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in before:
            parameter.grad = gradient


def _few(this: Pass) -> Pass | None:
    """A pass of the first sample and the last other one; one would not show what is computed for each, what for all."""
    other = next((i for i in reversed(range(this.call.size)) if this.keys[i] != this.keys[0]), this.call.size - 1)
    rows = [0, other]
    call = this.call.part(rows)
    if call is None:
        return None
    known = replace(this.known, work=Work(0, 0), computed={})
    keys, stored = [this.keys[i] for i in rows], [this.rows[i] for i in rows]
    return replace(this, call=call, known=known, keys=keys, rows=stored, rehearses=True, taken={})
