"""Strategies whose frozen layers come and go train bit for bit the same beside the cache."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from cached_fits import assert_same, both, loader
from test_phases_cached import bert

from lightning_freeze import (
    LISA,
    AutoFreeze,
    BlockCoordinate,
    FisherUnfreezing,
    FreezeOut,
    SlimFit,
    SpectrumFreezing,
)
from lightning_freeze.callbacks.layer_callback import FreezingCallback

# Three batches an epoch, twelve epochs. The least share of samples that the cache has to save.
STRATEGIES: dict[str, tuple[Callable[[], FreezingCallback], float]] = {
    "lisa": (lambda: LISA(1, interval=3, embeddings=False, seed=1, verbose=False), 0.1),
    "lisa in mid-epoch": (lambda: LISA(1, interval=4, embeddings=False, seed=2, verbose=False), 0.1),
    "block coordinate": (lambda: BlockCoordinate(interval=6, verbose=False), 0.1),
    "one block at a time, from the input up": (lambda: BlockCoordinate(6, "ascending", verbose=False), 0.1),
    "autofreeze": (lambda: AutoFreeze(num_intervals=9, verbose=False), 0.2),
    "fisher": (lambda: FisherUnfreezing(9, 2, verbose=False), 0.1),
    "slimfit": (lambda: SlimFit(0.7, 3, verbose=False), 0.0),
    "freeze out": (lambda: FreezeOut(t_0=0.5, how_scale="linear", verbose=False), 0.2),
    "spectrum": (lambda: SpectrumFreezing(30, embeddings=False, verbose=False), 0.0),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", STRATEGIES)
def test_equals_uncached(name: str) -> None:
    make, least = STRATEGIES[name]
    plain, cached, cache = both(bert(), make(), validation=loader, epochs=12)
    assert_same(plain, cached)
    assert not cache.reasons
    assert cache.hit_rate >= least
