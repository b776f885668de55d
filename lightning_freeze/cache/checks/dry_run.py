"""Seeing that nothing changes when the frozen layers are skipped, before they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_freeze.cache.checks import self_check, side_effects
from lightning_freeze.cache.identity.cached_towers import CachedTower
from lightning_freeze.cache.identity.keys import Unsupported
from lightning_freeze.cache.identity.values import tensors_in
from lightning_freeze.cache.prefix import layout
from lightning_freeze.cache.prefix.block_signature import BlockForm
from lightning_freeze.cache.prefix.pass_state import Pass
from lightning_freeze.cache.prefix.predicted_gain import flops
from lightning_freeze.cache.prefix.stand_ins import Detour, run_prefix


def taken_hidden(tower: CachedTower, this: Pass) -> Tensor:
    """The hidden states that a pass has computed at its boundary.

    Args:
        tower: The tower.
        this: The pass, which has run for real.

    Raises:
        Unsupported: If it has shown that they cannot be put in the place of the prefix.
    """
    watch, hidden = this.watch, this.taken.get(this.known.boundary)
    if not this.known.checked and any(map(_drops_layers, tower.entry.modules())):
        raise Unsupported("its layers are dropped at random (layerdrop)")
    if watch is not None and watch.problem is not None:
        raise Unsupported(watch.problem)
    if hidden is None or watch is None or None in watch.forms:
        raise Unsupported(f"{tower.entry_name or 'the module'} does not run its blocks in every call")
    if this.fed:
        raise Unsupported("something that trains, or is made to require grad, feeds into its frozen layers")
    if hidden.is_nested or hidden.dim() < 2 or hidden.shape[0] != this.call.size:
        raise Unsupported("its hidden states do not have the batch as their first dimension")
    return hidden


def _drops_layers(module: nn.Module) -> bool:
    own = getattr(module, "layerdrop", 0) or getattr(getattr(module, "config", None), "layerdrop", 0)
    return module.training and bool(own)


def compare(this: Pass, hidden: Tensor, dtype: torch.dtype) -> None:
    """Compare what was read with what was computed.

    Args:
        this: The pass.
        hidden: What was computed.
        dtype: What it is stored in.

    Raises:
        Unsupported: If they differ.
    """
    limit = self_check.tolerance(hidden.dtype, dtype)
    computed = layout.pack(hidden, this.spans)
    compared = False
    for number, row in enumerate(this.rows):
        if row is None:
            continue
        if row.dtype != dtype or row.shape != computed[number].shape:
            this.rows[number] = None
            continue
        compared = True
        if self_check.difference(row.cpu(), computed[number]) > limit:
            raise Unsupported("what was stored differs from what its frozen layers compute")
    this.known.verified += compared


def check_randomness(tower: CachedTower, forms: Sequence[BlockForm], this: Pass, hidden: Tensor) -> None:
    """Something has drawn random numbers: see that it was none of what is skipped, and that nothing came of it.

    Args:
        tower: The tower.
        forms: The forms of its blocks.
        this: The pass.
        hidden: What it computed.

    Raises:
        Unsupported: If something came of it.
    """
    call, known, entry = this.call, this.known, tower.entry
    loud = next((m for m in tower.prefix_modules(known.boundary) if m.training), None)
    where = "code around its frozen layers" if loud is None else f"a {type(loud).__name__} that is frozen"
    reason = f"{where} draws random numbers, as dropout does in training mode; eval mode would let it be stored"
    assert this.start is not None
    skipped = [*tower.stems, *tower.blocks[: known.boundary]]
    for seed in (1, 2, 3):
        with (
            side_effects.rehearsal(entry, this.start, hidden.device),
            side_effects.Draws(skipped, hidden.device) as draws,
        ):
            torch.manual_seed(seed)
            again = run_prefix(tower, forms, [known.boundary], (call.args, call.kwargs))
        if draws.any or self_check.difference(again[known.boundary], hidden) > self_check.tolerance(hidden.dtype):
            raise Unsupported(reason)
    known.draws = True


class Rehearsal:
    """Runs parts of a tower once more, to see that samples are independent and that skipping changes nothing.

    Args:
        tower: The tower.
        forms: The forms of its blocks.
        this: The pass that has just run for real.
        hidden: What it computed at the boundary.
    """

    def __init__(self, tower: CachedTower, forms: Sequence[BlockForm], this: Pass, hidden: Tensor) -> None:
        self._tower = tower
        self._forms = forms
        self._this = this
        self._hidden = hidden
        self._limit = self_check.tolerance(hidden.dtype)

    def run(self, output: Any) -> None:
        """Check, and note what may be skipped and how samples may be stored.

        Args:
            output: What the tower returned.

        Raises:
            Unsupported: If skipping would change a result.
        """
        call, known, hidden, start = self._this.call, self._this.known, self._hidden, self._this.start
        assert start is not None
        known.padded = known.padded or self._this.spans is not None
        with side_effects.rehearsal(self._tower.entry, start, hidden.device):
            if call.size > 1:
                self._check_independence()
                known.alone = False
            else:
                self._compute(call.args, call.kwargs)
        self.skip(output)

    def skip(self, output: Any) -> None:
        """Check that skipping changes nothing, and note what may be skipped.

        Args:
            output: What the tower returned.

        Raises:
            Unsupported: If it does.
        """
        known = self._this.known
        if not any(True for _ in tensors_in(output)):
            raise Unsupported(f"it returns a {type(output).__name__}, in which no tensor is found to compare")
        spans = tuple(self._this.spans) if self._this.spans and known.trimmed else None
        stems = tuple(self._stems())
        for used, skipped in dict.fromkeys([(spans, stems), (spans, ()), (None, stems), (None, ())]):
            if self._is_same(output, used, skipped):
                known.stems = list(skipped)
                known.trimmed = known.trimmed and (used is not None or not self._this.spans)
                return
        self._repeat(output)
        raise Unsupported("a layer above the frozen ones reads what they compute on the way")

    def _repeat(self, output: Any) -> None:
        """See that it is not the module itself that returns something else each time."""
        call, hidden, start = self._this.call, self._hidden, self._this.start
        assert start is not None
        with side_effects.rehearsal(self._tower.entry, start, hidden.device):
            again = self._tower.entry.forward(*call.args, **call.kwargs)
        if self_check.outputs_differ(again, output, self._this.spans, call.length, self._limit):
            raise Unsupported("it does not return the same again for the same inputs: it has a state of its own")

    def _stems(self) -> list[nn.Module]:
        """The modules before the blocks whose output could be anything of the shape of the hidden states."""
        hidden, watch = self._hidden, self._this.watch
        return [
            stem
            for stem, value in (watch.stems if watch else {}).items()
            if isinstance(value, Tensor) and value.shape == hidden.shape and value.dtype == hidden.dtype
        ]

    def _is_same(self, output: Any, spans: layout.Spans | None, stems: Sequence[nn.Module]) -> bool:
        """Whether a pass that skips returns the same."""
        call, known, hidden, start = self._this.call, self._this.known, self._hidden, self._this.start
        entry = self._tower.entry
        assert start is not None
        rows = layout.pack(hidden, spans)
        laid_out = layout.lay_out(rows, spans, call.length, hidden.dtype, hidden.device, layout.order_of(hidden))
        with (
            side_effects.rehearsal(entry, start, hidden.device),
            Detour(self._tower, self._forms, known.boundary, laid_out, stems) as detour,
        ):
            try:
                found, count = flops(lambda: entry.forward(*call.args, **call.kwargs))
            except Exception as error:
                # Code that reads what a skipped block has withheld fails in whatever way it does.
                if not any(form.withholds for form in self._forms[: known.boundary]):
                    raise
                raise Unsupported("a block returns more than its hidden states, and something reads it") from error
            if self_check.keeps_nan(entry):
                raise Unsupported("it keeps what its frozen layers compute on the way where others may read it")
        known.work.rest = count / call.size
        return detour.reached and not self_check.outputs_differ(found, output, spans, call.length, self._limit)

    def _check_independence(self) -> None:
        """Compute the shortest sample alone, without its padding."""
        call, known, hidden = self._this.call, self._this.known, self._hidden
        row = min(range(call.size), key=lambda i: call.spans[i][1] - call.spans[i][0]) if call.spans else 0
        if call.has_padding and known.trimmed:
            start, stop = call.spans[row]
            alone = call.only([row], stop)
            if alone is not None:
                computed = self._compute(*alone, scale=call.length / stop)
                if self_check.difference(computed[0, start:], hidden[row, start:stop]) <= self._limit:
                    return
            known.trimmed = False
        alone = call.only([row])
        if alone is None:
            raise Unsupported("its inputs cannot be told apart by sample")
        computed = self._compute(*alone)
        if computed.shape[0] != 1 or self_check.difference(computed[0], hidden[row]) > self._limit:
            raise Unsupported("what its frozen layers compute for one sample depends on the other samples of the batch")

    def _compute(self, args: tuple[Any, ...], kwargs: dict[str, Any], scale: float = 1.0) -> Tensor:
        """Compute the prefix of one sample, counting operations."""
        known = self._this.known
        run = lambda: run_prefix(self._tower, self._forms, [known.boundary], (args, kwargs))[known.boundary]  # noqa: E731
        skipped = self._tower.prefix_modules(known.boundary)
        kept = self_check.Kept(skipped)
        computed, count = flops(run)
        # Another sample gives other tensors; of the same one again nothing can be told from their content.
        if kept.differ(by_content=self._this.call.size > 1):
            raise Unsupported("its frozen layers keep what they compute in an attribute, where others may read it")
        known.work.prefix = count * scale
        return computed  # type: ignore[no-any-return]
