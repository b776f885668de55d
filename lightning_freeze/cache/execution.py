"""How one forward pass of a tower comes through its frozen prefix, or past it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from lightning_freeze.cache.checks import self_check
from lightning_freeze.cache.checks.dry_run import Rehearsal, check_randomness, compare, taken_hidden
from lightning_freeze.cache.checks.few_samples import FewSamples
from lightning_freeze.cache.identity.cached_towers import CachedTower
from lightning_freeze.cache.prefix import break_even, layout
from lightning_freeze.cache.prefix.block_signature import BlockForm
from lightning_freeze.cache.prefix.entries import PrefixEntries, synchronize
from lightning_freeze.cache.prefix.pass_state import Known, Pass, Tally
from lightning_freeze.cache.prefix.random_state import Randomness, undrawn
from lightning_freeze.cache.prefix.stand_ins import Detour, Nothing, Watch, run_prefix
from lightning_freeze.diagnostics.backward_watch import mark_probe

#: From a tensor to the keys of the samples that it was computed from, if another tower has returned it.
Origin = Callable[[Tensor], Sequence[bytes] | None]


class Passage:
    """Lets a pass run for real, checks and stores what it computes, or lets it skip its prefix.

    Args:
        tower: The tower.
        entries: The hidden states that are stored.
        tally: Where hits are counted.
        origin: As for :meth:`Call.keys`.

    Attributes:
        proving: Whether the running step shows whether padding is read; its gradients reach further down than usual.
    """

    def __init__(self, tower: CachedTower, entries: PrefixEntries, tally: Tally, origin: Origin) -> None:
        self.proving = False
        self._tower = tower
        self._entries = entries
        self._tally = tally
        self._origin = origin
        self._forms: list[BlockForm] | None = None
        self._nothing = Nothing()

    # ----------------------------------------------------------------------------------------------- for real

    def run(self, this: Pass) -> None:
        """Let the prefix run for real, and take what it computes."""
        this.start = Randomness(this.device)
        wanted = self._entries.boundaries(this.known.boundary)
        stems = self._tower.stems if this.rehearses else ()
        this.watch = Watch(self._tower, wanted, self._forms, lambda b, hidden: self._take(this, b, hidden), stems)
        # An accelerator is waited for in the first pass and in those in which hits are compared; others stay as quick.
        is_rare = not this.known.checked or len(this.missing) < this.call.size
        this.is_timed = is_rare or this.device.type == "cpu"
        if this.is_timed:
            synchronize(this.device)
        this.began = time.perf_counter()

    def _take(self, this: Pass, boundary: int, hidden: Tensor) -> Tensor | None:
        # What comes above may change it in place.
        this.taken[boundary] = hidden if hidden.is_nested else hidden.detach().clone()
        if boundary != this.known.boundary:
            return None
        this.fed = hidden.requires_grad
        if this.is_timed:
            synchronize(hidden.device)
        this.seconds = time.perf_counter() - this.began
        this.drew = this.start is not None and this.start.drawn_since()
        is_laid_out = hidden.dim() > 2 and hidden.shape[:2] == (this.call.size, this.call.length)
        return self._probe(this, hidden) if this.proves and is_laid_out and not hidden.requires_grad else None

    def _probe(self, this: Pass, hidden: Tensor) -> Tensor:
        """Hidden states that learn from the backward pass whether anything reads the positions of padding."""
        self.proving = True
        leaf = hidden.detach().requires_grad_()
        mark_probe(leaf)
        leaf.register_hook(this.learn_from)
        with torch.enable_grad():
            return leaf.clone()  # no leaf, so that it may be changed in place

    def finish(self, this: Pass, output: Any) -> str | None:
        """A pass has run for real: check what it has shown, and store what it has computed.

        Args:
            this: The pass.
            output: What the tower returned.

        Returns:
            Why reading it back is not worth while, ``None`` if it is.

        Raises:
            Unsupported: If the prefix cannot be skipped.
        """
        known = this.known
        hidden = taken_hidden(self._tower, this)
        assert this.watch is not None
        if self._forms is None:
            self._forms = [form for form in this.watch.forms if form is not None]
        known.describe(hidden, this.call)
        self._tally.samples += this.call.size
        known.is_nan = known.is_nan or self_check.has_nan(output)
        self._check(this, hidden, output)
        known.include(this.loud)
        if this.trimmed and not known.trimmed and this.call.has_padding:
            this.trimmed = False
            this.keys = this.call.keys(False, self._origin)
            this.rows = [None] * this.call.size
        if this.detour is None:
            self._entries.end_pass(this)
        self._entries.measure(this, hidden)
        self._entries.put(this, this.taken, this.missing, whole=True)
        return None if known.checked else self._entries.begin(this, self._origin)

    def _check(self, this: Pass, hidden: Tensor, output: Any) -> None:
        assert self._forms is not None
        if this.drew and not (this.known.draws and this.loud <= this.known.loud):
            check_randomness(self._tower, self._forms, this, hidden)
        if this.detour is None:
            compare(this, hidden, self._entries.dtype or hidden.dtype)
            if this.rehearses:
                Rehearsal(self._tower, self._forms, this, hidden).run(output)

    def check_few(self, this: Pass) -> bool:
        """See on a few samples that the prefix can be skipped, where the whole batch was found.

        Returns:
            Whether it can; otherwise the whole batch has to run, and decides.
        """
        forms = FewSamples(self._tower, self._entries, self.run).check(this, self._origin)
        self._forms = self._forms or forms
        return forms is not None

    # --------------------------------------------------------------------------------------------------- past

    def skip(self, this: Pass) -> str | None:
        """Skip the prefix, computing first what is missing.

        Returns:
            Why reading turns out not to be worth while, ``None`` if it is.
        """
        missing = this.missing
        this.start = Randomness(this.device)
        if missing and not self._compute(this, missing):
            self.run(this)
            return None
        hits = this.call.size - len(missing)
        self._tally.samples += this.call.size
        self._tally.hits += hits
        self._detour(this, this.known, [row for row in this.rows if row is not None], keeps=True)
        reading = 0.0 if missing else time.perf_counter() - this.began
        self._tally.saved += hits * this.known.seconds - reading
        return None if missing else break_even.why_not_after_all(this.known, reading, this.call.size)

    def _compute(self, this: Pass, missing: Sequence[int]) -> bool:
        """Compute and store the prefix of some of the samples alone, if they can be told apart."""
        some = this.call.only(missing)
        if some is None or self._forms is None:
            return False
        wanted = self._entries.boundaries(this.known.boundary)
        with undrawn(this.device) if this.known.draws else nullcontext():
            computed = run_prefix(self._tower, self._forms, wanted, some)
        self._entries.put(this, computed, missing, whole=False)
        spans = [this.spans[i] for i in missing] if this.spans else None
        fresh = layout.pack(computed[this.known.boundary], spans)
        for number, row in zip(missing, fresh, strict=True):
            this.rows[number] = row
        return True

    def skip_lower(self, this: Pass, mode: str) -> None:
        """Nothing is stored at the boundary: start at a lower one where an earlier phase has left everything.

        Args:
            this: The pass.
            mode: The modes of the modules.
        """
        boundary = this.known.boundary
        for lower in sorted((b for b in self._entries.filled if b < boundary), reverse=True):
            namespace, known = self._entries.identify(lower, mode, this.call)
            if not known.checked or (this.trimmed and not known.trimmed):
                continue
            rows = self._entries.read(this, namespace, known)
            found = [row for row in rows if row is not None]
            if len(found) == len(rows):
                self.run(this)
                self._detour(this, known, found)
                return
        self.run(this)

    def _detour(self, this: Pass, known: Known, rows: Sequence[Tensor], keeps: bool = False) -> None:
        assert self._forms is not None
        hidden = layout.lay_out(rows, this.spans, this.call.length, known.dtype, known.device, known.order)
        if keeps:
            self._entries.keep(this, hidden)
            if this.proves:
                hidden = self._probe(this, hidden)
        this.detour = Detour(
            self._tower, self._forms, known.boundary, hidden, known.stems, self._nothing, known.computed
        )

    # -------------------------------------------------------------------------------------------------- again

    def was_read(self, this: Pass, output: Any) -> bool:
        """Whether something is wrong with a pass that skipped: blocks called otherwise, or NaN in what it returns.

        NaN is what skipped layers return; it comes out where something reads one of them.
        """
        if this.detour is None:
            return False
        if this.detour.is_strange or not this.detour.reached:
            return True
        return not this.known.is_nan and self_check.has_nan(output)

    def again(self, this: Pass) -> Any:
        """Compute a pass that skipped once more as if it had not, and return what it should have returned."""
        assert this.start is not None
        this.start.restore()
        return self._tower.entry.forward(*this.call.args, **this.call.kwargs)

    def problem(self, this: Pass, output: Any) -> str | None:
        """What was wrong with a pass that skipped; ``None`` if it was only the module's own NaN.

        Args:
            this: The pass.
            output: What it should have returned.
        """
        assert this.detour is not None
        if this.detour.is_strange:
            return "its blocks were called with other options or arguments than before"
        if not this.detour.reached:
            return "its blocks were not run in the order in which they ran before"
        if not self_check.has_nan(output):
            return "a layer above the frozen ones reads what they compute on the way"
        this.known.is_nan = True
        return None
