"""What a rank runs while another rank checks something on its own samples: all of them must run the same layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from lightning_freeze.cache.checks import side_effects
from lightning_freeze.cache.identity.cached_towers import CachedTower
from lightning_freeze.cache.prefix.block_signature import BlockSignature
from lightning_freeze.cache.prefix.lockstep import Extra
from lightning_freeze.cache.prefix.pass_state import PassState
from lightning_freeze.cache.prefix.stand_ins import SkippedBlocks, pass_prefix


def substitutes(
    tower: CachedTower, signatures: Sequence[BlockSignature], state: PassState, hidden: Tensor
) -> dict[Extra, Callable[[], Any]]:
    """Return what to run while another rank checks something on its own samples.

    Args:
        tower: The tower.
        signatures: The signatures of its blocks.
        state: The pass, which has run for real.
        hidden: The hidden states that it computed at the boundary.
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
        Extra.PREFIX: isolated(lambda: pass_prefix(tower, boundary, (call.args, call.kwargs))),
        Extra.SKIPPING: isolated(skipping),
        Extra.WHOLE: isolated(lambda: tower.entry.forward(*call.args, **call.kwargs)),
    }
