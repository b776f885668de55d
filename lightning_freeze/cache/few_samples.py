"""A batch that was found as a whole is checked on two of its samples, at a fraction of what all of it would take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lightning_freeze.cache import selfcheck
from lightning_freeze.cache.forms import BlockForm
from lightning_freeze.cache.gain import Work, bytes_in, flops
from lightning_freeze.cache.obstacles import can_prove
from lightning_freeze.cache.passes import Pass
from lightning_freeze.cache.prefix_entries import SLOWER, PrefixEntries
from lightning_freeze.cache.rehearsal import Rehearsal, check_randomness, compare, taken_hidden
from lightning_freeze.cache.towers import CachedTower

#: Samples of a batch from which on two of them are less work than computing and checking all.
_LEAST = 4


def can_stand_for(this: Pass) -> bool:
    """Whether a few samples may stand for the batch of a pass.

    Not on an accelerator, which computes a whole batch in hardly more time; not where padding is left out, which only
    the backward pass of a whole batch shows to be right; and not where something counts what is kept for that pass.
    """
    return (
        this.call.size >= _LEAST
        and not this.missing
        and this.spans is None
        and this.device.type == "cpu"
        and (can_prove() or not torch.is_grad_enabled())
    )


class FewSamples:
    """Runs a tower on a few samples of a batch, really and without its prefix, and compares.

    Args:
        tower: The tower.
        entries: The hidden states that are stored.
        run: Lets a pass run for real and takes what it computes.
        forms: The forms of the blocks, ``None`` if they are still to be learned.
    """

    def __init__(
        self,
        tower: CachedTower,
        entries: PrefixEntries,
        run: Callable[[Pass], None],
        forms: Sequence[BlockForm] | None,
    ) -> None:
        self._tower = tower
        self._entries = entries
        self._run = run
        self._forms = forms

    def check(self, this: Pass, origin: Callable[[Tensor], Sequence[bytes] | None]) -> list[BlockForm] | None:
        """Check on the first and the last sample, and note what may be skipped, as a whole batch would.

        Args:
            this: The pass, whose samples were all found.
            origin: As for :meth:`Call.keys`.

        Returns:
            The forms of the blocks; ``None``, with nothing noted, if anything is not as it should be.
        """
        few = _few(this)
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
        known.loud |= this.loud
        if not known.checked:
            self._entries.time_reading(this, known, origin)
            # All samples take between this time and several times as long. If that is not enough to tell, they run.
            if known.reading * this.call.size > SLOWER * few.seconds:
                return None
            known.checked, known.seconds = True, few.seconds / few.call.size
            known.first = known.seconds
        vars(this.known).update(vars(known))
        this.rows = found
        self._entries.filled.add(known.boundary)
        return forms

    def _compare(self, few: Pass) -> list[BlockForm] | None:
        known, call, entry = few.known, few.call, self._tower.entry
        trains = torch.is_grad_enabled()  # as the pass will: only then it shows if something that trains feeds into it
        with selfcheck.rehearsal(entry, selfcheck.Randomness(few.device), few.device), torch.set_grad_enabled(trains):
            kept = selfcheck.Kept(self._tower.prefix_modules(known.boundary))
            self._run(few)
            assert few.watch is not None
            with few.watch, self._entries.passing(known.boundary):
                output, count = flops(lambda: entry.forward(*call.args, **call.kwargs))
            if kept.differ(by_content=True):
                return None
        hidden = taken_hidden(self._tower, few)
        forms = [form for form in few.watch.forms if form is not None]
        known.describe(hidden, call)
        known.is_nan = known.is_nan or selfcheck.has_nan(output)
        if few.drew:
            check_randomness(self._tower, forms, few, hidden)
        # Their hidden states were computed among other samples: that these are independent is seen here too.
        compare(few, hidden, self._entries.dtype or hidden.dtype)
        known.alone = False
        Rehearsal(self._tower, forms, few, hidden).skip(output)
        known.work.prefix = count / call.size - known.work.rest
        return None if few.missing else forms


def _few(this: Pass) -> Pass | None:
    """A pass of the first and the last sample; one would not show what blocks compute for each and what for all."""
    rows = [0, this.call.size - 1]
    call = this.call.part(rows)
    if call is None:
        return None
    known = replace(this.known, work=Work(0, 0), computed={})
    keys, stored = [this.keys[i] for i in rows], [this.rows[i] for i in rows]
    return replace(this, call=call, known=known, keys=keys, rows=stored, rehearses=True, taken={})
