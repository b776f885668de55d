"""Published fine-tuning strategies, each a small callback on the same phases, holds and rates.

``ChainThaw``, ``LinearProbeThenFineTune`` and ``ULMFiT`` are lists of phases. ``DynamicFreezing``
trains other layers every few steps, as a policy chooses; ``LISA`` and ``BlockCoordinate`` are cases of it.

May import every room but ``cli`` and ``plan``. Begin reading with ``linear_probe.py``, the smallest strategy.
"""

from lightning_freeze.strategies.block_coordinate import BlockCoordinate
from lightning_freeze.strategies.chain_thaw import ChainThaw
from lightning_freeze.strategies.dynamic_freezing import DynamicFreezing
from lightning_freeze.strategies.linear_probe import LinearProbeThenFineTune
from lightning_freeze.strategies.lisa import LISA
from lightning_freeze.strategies.policies import OneLayerAtATime, Policy, RandomLayers
from lightning_freeze.strategies.ulmfit import ULMFiT

__all__ = [
    "LISA",
    "BlockCoordinate",
    "ChainThaw",
    "DynamicFreezing",
    "LinearProbeThenFineTune",
    "OneLayerAtATime",
    "Policy",
    "RandomLayers",
    "ULMFiT",
]
