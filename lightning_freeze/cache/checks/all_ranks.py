"""Checks of a sharded module: hidden states that all ranks accept, and passes to run while another rank checks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_freeze.cache.checks import side_effects
from lightning_freeze.cache.checks.pass_checks import hidden_states_of
from lightning_freeze.cache.identity.cached_towers import CachedTower
from lightning_freeze.cache.identity.keys import hash_of
from lightning_freeze.cache.identity.unsupported import ELSEWHERE, Unsupported
from lightning_freeze.cache.prefix.block_signature import BlockSignature
from lightning_freeze.cache.prefix.lockstep import Extra
from lightning_freeze.cache.prefix.pass_state import PassState
from lightning_freeze.cache.prefix.stand_ins import SkippedBlocks, run_until
from lightning_freeze.distributed.ranks import Ranks


def agreed_hidden_states(tower: CachedTower, state: PassState, ranks: Ranks | None) -> Tensor:
    """Return the hidden states of a pass that has run for real, once no rank has a reason against it.

    Args:
        tower: The tower.
        state: The pass.
        ranks: All ranks, ``None`` if each of them may run other layers.

    Raises:
        Unsupported: On all ranks, if one of them cannot use its hidden states.
    """
    if ranks is None:
        return hidden_states_of(tower, state)
    hidden, problem = torch.empty(0), None
    try:
        hidden = hidden_states_of(tower, state)
    except Exception as error:
        problem = error
    # All ranks that see the same data take part in this, also one with a problem.
    is_replicated = ranks.is_replicated(hash_of(hidden))
    if not is_replicated and problem is None:
        problem = Unsupported(
            "its hidden states differ between the ranks of a tensor parallel group, as where they are sharded "
            "along the sequence"
        )
    if ranks.highest(problem is not None):
        raise problem or Unsupported(f"{ELSEWHERE} cannot use it")
    return hidden


def extra_passes(
    tower: CachedTower, signatures: Sequence[BlockSignature], state: PassState, hidden: Tensor
) -> dict[Extra, Callable[[], Any]]:
    """Return what to run while another rank checks something on its own samples.

    Args:
        tower: The tower.
        signatures: How its blocks are called.
        state: The pass, which has run for real.
        hidden: Its hidden states.
    """
    call, boundary, start = state.call, state.known.boundary, state.random_state
    assert start is not None

    def isolated(run: Callable[[], Any]) -> Callable[[], Any]:
        def substitute() -> None:
            with side_effects.isolated(tower.entry, start, hidden.device):
                run()

        return substitute

    def skipping() -> None:
        with SkippedBlocks(tower, signatures, boundary, hidden):
            tower.entry.forward(*call.args, **call.kwargs)

    return {
        Extra.PREFIX: isolated(lambda: run_until(tower, boundary, (call.args, call.kwargs))),
        Extra.SKIPPING: isolated(skipping),
        Extra.WHOLE: isolated(lambda: tower.entry.forward(*call.args, **call.kwargs)),
    }
