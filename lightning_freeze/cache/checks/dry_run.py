"""A dry run: checks that skipping the frozen layers changes nothing, before they are skipped."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from lightning_freeze.cache.checks import cross_sample, self_check, side_effects
from lightning_freeze.cache.identity.cached_towers import CachedTower
from lightning_freeze.cache.identity.unsupported import Unsupported
from lightning_freeze.cache.identity.values import tensors_in
from lightning_freeze.cache.prefix import layout
from lightning_freeze.cache.prefix.block_signature import BlockSignature
from lightning_freeze.cache.prefix.lockstep import Extra, Lockstep
from lightning_freeze.cache.prefix.pass_state import KnownPrefix, PassState
from lightning_freeze.cache.prefix.predicted_gain import count_flops
from lightning_freeze.cache.prefix.stand_ins import SkippedBlocks, run_prefix, run_until
from lightning_freeze.distributed.sharding import gathers, is_sharded


class DryRun:
    """Runs parts of a tower once more, to check that samples are independent and that skipping changes nothing.

    Args:
        tower: The tower.
        signatures: The signatures of its blocks.
        state: The pass that has just run for real.
        hidden: The hidden states that it computed at the boundary.
        lockstep: Runs extra passes.
        larger: A larger prefix that has been checked. Nothing above it reads anything below it, so passes end there.
            ``None`` to run all layers.

    Attributes:
        rest_above: Floating point operations that passes leave out, for one sample.
    """

    def __init__(
        self,
        tower: CachedTower,
        signatures: Sequence[BlockSignature],
        state: PassState,
        hidden: Tensor,
        lockstep: Lockstep,
        larger: KnownPrefix | None = None,
    ) -> None:
        self._end = None if larger is None else larger.boundary
        self.rest_above = 0.0 if larger is None else larger.work.rest
        self._larger = larger
        self._lockstep = lockstep
        self._tower = tower
        self._signatures = signatures
        self._state = state
        self._hidden = hidden
        self._limit = self_check.tolerance(hidden.dtype)
        self._limit_across_batches = self_check.tolerance_across_batches(hidden)

    def run(self, output: Any) -> None:
        """Run all checks, and record what may be skipped and how samples may be stored.

        Args:
            output: What the tower returned.

        Raises:
            Unsupported: If skipping would change a result.
        """
        call, known, hidden, start = self._state.call, self._state.known, self._hidden, self._state.random_state
        assert start is not None
        known.dry_run_trimmed = known.dry_run_trimmed or self._state.spans is not None
        with side_effects.isolated(self._tower.entry, start, hidden.device):
            if call.size > 1:
                row = self._check_independence()
                known.mixing = known.mixing or self._find_mixing(row)
                # Padding is part of a batch that is stored as a whole.
                known.trims_padding = known.trims_padding and known.mixing is None and not self._uses_padding(row)
                known.independence_checked = True
                known.sizes.add(call.size)
            else:
                self._compute(call.args, call.kwargs)
        self.check_skipping(output)

    def check_skipping(self, output: Any) -> None:
        """Check that skipping changes nothing, and record what may be skipped.

        Args:
            output: What the tower returned, or what the last block that passes run returned.

        Raises:
            Unsupported: If skipping would change a result.
        """
        known = self._state.known
        if not any(True for _ in tensors_in(output)):
            raise Unsupported(f"it returns a {type(output).__name__}, in which no tensor is found to compare")
        spans = tuple(self._state.spans) if self._state.spans and known.trims_padding else None
        embeddings = tuple(self._skippable_embeddings())
        for used, skipped in dict.fromkeys([(spans, embeddings), (spans, ()), (None, embeddings), (None, ())]):
            is_same = partial(self._is_same, output, used, skipped)
            if self._lockstep.run(Extra.SKIPPING, is_same):
                known.skipped_embeddings = list(skipped)
                known.trims_padding = known.trims_padding and (used is not None or not self._state.spans)
                return
        self._check_repeatability(output)
        raise Unsupported("a layer above the frozen ones reads what they compute on the way")

    def _forward(self) -> Any:
        call = self._state.call
        return run_until(self._tower, self._end, (call.args, call.kwargs))

    def _check_repeatability(self, output: Any) -> None:
        """Check that the module itself returns the same for the same inputs."""
        call, hidden, start = self._state.call, self._hidden, self._state.random_state
        assert start is not None
        with side_effects.isolated(self._tower.entry, start, hidden.device):
            again = self._lockstep.run(Extra.WHOLE, self._forward)
        if self_check.outputs_differ(again, output, self._state.spans, call.length, self._limit):
            raise Unsupported("it does not return the same again for the same inputs: it has a state of its own")

    def _skippable_embeddings(self) -> list[nn.Module]:
        """Return the modules before the blocks whose output NaN in the shape of the hidden states can replace."""
        hidden, recorder, larger = self._hidden, self._state.recorder, self._larger
        return [
            module
            for module, value in (recorder.embedding_modules if recorder else {}).items()
            if (larger is None or module in larger.skipped_embeddings)
            and isinstance(value, Tensor)
            # Under tensor parallelism a hook gathers it afterwards, which fails for a plain tensor.
            and not is_sharded(value)
            and value.shape == hidden.shape
            and value.dtype == hidden.dtype
            # Where ranks have other shapes, one of them might skip weights that the others gather.
            if not gathers(module)
        ]

    def _is_same(self, output: Any, spans: layout.Spans | None, embeddings: Sequence[nn.Module]) -> bool:
        """Whether a pass that skips the prefix and some embeddings returns the same."""
        call, known, hidden, start = self._state.call, self._state.known, self._hidden, self._state.random_state
        entry = self._tower.entry
        assert start is not None
        rows = layout.pack(hidden, spans)
        laid_out = layout.lay_out(rows, spans, call.length, hidden.dtype, hidden.device, layout.order_of(hidden))
        with (
            side_effects.isolated(entry, start, hidden.device),
            SkippedBlocks(self._tower, self._signatures, known.boundary, laid_out, embeddings) as skipped,
        ):
            try:
                found, count = count_flops(self._forward)
            except Exception as error:
                # Code that reads something that a skipped block does not return may fail in any way.
                if not any(signature.withholds_output for signature in self._signatures[: known.boundary]):
                    raise
                raise Unsupported("a block returns more than its hidden states, and something reads it") from error
            if self_check.stores_nan(entry):
                raise Unsupported("it keeps what its frozen layers compute on the way where others may read it")
        known.work.rest = count / call.size + self.rest_above
        return skipped.reached_boundary and not self_check.outputs_differ(
            found, output, spans, call.length, self._limit
        )

    def _check_independence(self) -> int:
        """Compute the shortest sample alone, without its padding, and compare; returns which one it is."""
        call, known, hidden = self._state.call, self._state.known, self._hidden
        row = min(range(call.size), key=lambda i: call.spans[i][1] - call.spans[i][0]) if call.spans else 0
        if call.has_padding and known.trims_padding:
            start, stop = call.spans[row]
            alone = call.select([row], stop)
            if alone is not None:
                computed = self._compute(*alone, scale=call.length / stop)
                if self_check.difference(computed[0, start:], hidden[row, start:stop]) <= self._limit_across_batches:
                    return row
            known.trims_padding = False
        alone = call.select([row])
        if alone is None:
            raise Unsupported("its inputs cannot be told apart by sample")
        computed = self._compute(*alone)
        if computed.shape[0] != 1 or self_check.difference(computed[0], hidden[row]) > self._limit_across_batches:
            raise Unsupported("what its frozen layers compute for one sample depends on the other samples of the batch")
        return row

    def _find_mixing(self, row: int) -> str | None:
        """Compute a sample among different others; returns what is computed across samples on the way."""
        call = self._state.call
        groups = cross_sample.groups(call.size, row, self._group_size())
        return cross_sample.find_dependence(self._run_prefix, call.select, groups)

    def _uses_padding(self, row: int) -> bool:
        """Whether something that is computed from a sample on the way changes with what its padding contains."""
        call, size = self._state.call, self._group_size()
        if not call.has_padding:
            return False
        rows, _ = cross_sample.groups(call.size, row, size)
        positions = cross_sample.Positions(call.length, *call.spans[row])
        inputs = [each.select(rows) for each in (call, call.with_other_padding())]
        return cross_sample.find_padding_use(self._run_prefix, inputs, size, positions) is not None

    def _group_size(self) -> int:
        call, steps = self._state.call, self._tower.steps[: self._state.known.boundary + 1]
        tensors = [tensor for tensor in call.tensors.values() if call.is_per_sample(tensor)]
        return cross_sample.group_size(tensors, [parameter for step in steps for parameter in step])

    def _run_prefix(self, inputs: Any) -> None:
        boundary = self._state.known.boundary
        self._lockstep.run(Extra.PREFIX, lambda: run_prefix(self._tower, self._signatures, [boundary], inputs))

    def _compute(self, args: tuple[Any, ...], kwargs: dict[str, Any], scale: float = 1.0) -> Tensor:
        """Compute the prefix of one sample, and count its operations."""
        known = self._state.known
        run = lambda: run_prefix(self._tower, self._signatures, [known.boundary], (args, kwargs))[known.boundary]  # noqa: E731
        skipped = self._tower.prefix_modules(known.boundary)
        snapshot = self_check.AttributeSnapshot(skipped)
        computed, count = self._lockstep.run(Extra.PREFIX, lambda: count_flops(run))
        # Another sample gives other tensors. The same sample gives the same ones, so their content shows nothing.
        if snapshot.has_changed(by_content=self._state.call.size > 1):
            raise Unsupported("its frozen layers keep what they compute in an attribute, where others may read it")
        known.work.prefix = count * scale
        return computed  # type: ignore[no-any-return]
