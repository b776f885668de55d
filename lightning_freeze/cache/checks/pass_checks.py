"""Checks of one pass that has run for real: its hidden states, its hits, its batch size and its random numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_freeze.cache.checks import self_check, side_effects
from lightning_freeze.cache.identity.cached_towers import CachedTower
from lightning_freeze.cache.identity.unsupported import Unsupported
from lightning_freeze.cache.prefix import layout
from lightning_freeze.cache.prefix.block_signature import BlockSignature
from lightning_freeze.cache.prefix.lockstep import Extra, Lockstep
from lightning_freeze.cache.prefix.pass_state import PassState
from lightning_freeze.cache.prefix.random_state import RandomState
from lightning_freeze.cache.prefix.stand_ins import run_prefix


def hidden_states_of(tower: CachedTower, state: PassState) -> Tensor:
    """Return the hidden states that a pass has computed at its boundary.

    Args:
        tower: The tower.
        state: The pass, which has run for real.

    Raises:
        Unsupported: If the pass has shown that they cannot replace the prefix.
    """
    recorder, hidden = state.recorder, state.hidden.get(state.known.boundary)
    if not state.known.is_checked and any(map(_drops_layers, tower.entry.modules())):
        raise Unsupported("its layers are dropped at random (layerdrop)")
    if recorder is not None and recorder.problem is not None:
        raise Unsupported(recorder.problem)
    if hidden is None or recorder is None or None in recorder.signatures:
        raise Unsupported(f"{tower.entry_name or 'the module'} does not run its blocks in every call")
    if state.requires_grad:
        raise Unsupported("something that trains, or is made to require grad, feeds into its frozen layers")
    if hidden.dim() < 2 or hidden.shape[0] != state.call.size:
        raise Unsupported("its hidden states do not have the batch as their first dimension")
    return hidden


def _drops_layers(module: nn.Module) -> bool:
    own = getattr(module, "layerdrop", 0) or getattr(getattr(module, "config", None), "layerdrop", 0)
    return module.training and bool(own)


def compare(state: PassState, hidden: Tensor, dtype: torch.dtype) -> None:
    """Compare hidden states that were read with those that were computed.

    Args:
        state: The pass.
        hidden: The hidden states that were computed.
        dtype: The dtype that is stored.

    Raises:
        Unsupported: If they differ.
    """
    limit = self_check.tolerance_across_batches(hidden, dtype)
    computed = layout.pack(hidden, state.spans)
    compared = False
    for number, row in enumerate(state.rows):
        if row is None:
            continue
        if row.dtype != dtype or row.shape != computed[number].shape:
            state.rows[number] = None
            continue
        compared = True
        if self_check.difference(row.cpu(), computed[number]) > limit:
            raise Unsupported("what was stored differs from what its frozen layers compute")
    state.known.verified += compared


def check_size(
    tower: CachedTower,
    signatures: Sequence[BlockSignature],
    state: PassState,
    rows: Sequence[int],
    hidden: Tensor,
    lockstep: Lockstep,
) -> None:
    """Compare one sample with what is computed for it alone, in the first batch of each size.

    Args:
        tower: The tower.
        signatures: The signatures of its blocks.
        state: The pass.
        rows: The samples that were computed together.
        hidden: Their hidden states.
        lockstep: Runs extra passes.

    Raises:
        Unsupported: If they differ.
    """
    known = state.known
    if known.has_checked(len(rows)):
        return
    known.sizes.add(len(rows))
    # The last one, whose place is not that of a sample alone.
    alone = state.call.select([rows[-1]])
    if alone is None:
        return
    with side_effects.isolated(tower.entry, RandomState(hidden.device), hidden.device):
        computed = lockstep.run(
            Extra.PREFIX, lambda: run_prefix(tower, signatures, [known.boundary], alone)[known.boundary]
        )
    if self_check.difference(computed[0], hidden[-1]) > self_check.tolerance_across_batches(hidden):
        raise Unsupported(
            f"what its frozen layers compute for one sample of {len(rows)} depends on the other samples of the batch"
        )


def check_randomness(
    tower: CachedTower, signatures: Sequence[BlockSignature], state: PassState, hidden: Tensor, lockstep: Lockstep
) -> None:
    """Check that random numbers were not drawn by skipped modules, and did not affect the hidden states.

    Args:
        tower: The tower.
        signatures: The signatures of its blocks.
        state: The pass.
        hidden: The hidden states that it computed.
        lockstep: Runs extra passes.

    Raises:
        Unsupported: If random numbers matter.
    """
    call, known, entry = state.call, state.known, tower.entry
    in_training = next((m for m in tower.prefix_modules(known.boundary) if m.training), None)
    where = "code around its frozen layers" if in_training is None else f"a {type(in_training).__name__} that is frozen"
    reason = f"{where} draws random numbers, as dropout does in training mode; eval mode would let it be stored"
    assert state.random_state is not None
    skipped = [*tower.embedding_modules, *tower.blocks[: known.boundary]]
    for seed in (1, 2, 3):
        with (
            side_effects.isolated(entry, state.random_state, hidden.device),
            side_effects.RandomUse(skipped, hidden.device) as random_use,
        ):
            torch.manual_seed(seed)
            again = lockstep.run(
                Extra.PREFIX, lambda: run_prefix(tower, signatures, [known.boundary], (call.args, call.kwargs))
            )
        difference = self_check.difference(again[known.boundary], hidden)
        if random_use.found or difference > self_check.tolerance(hidden.dtype):
            raise Unsupported(reason)
    known.rng_is_harmless = True
