"""Published fine-tuning strategies, each a small callback on the same phases, holds and rates.

``ChainThaw``, ``LinearProbeThenFineTune`` and ``ULMFiT`` are lists of phases. ``DynamicFreezing``
trains other layers every few steps, as a policy chooses; ``LISA`` and ``BlockCoordinate`` are cases of it.
``RelativeGradientLR`` scales rates, ``L2SP`` adds a penalty, and ``ReinitTopLayers`` changes the start.

May import every room but ``cli`` and ``plan``. Begin reading with ``linear_probe.py``, the smallest strategy.
"""

from lightning_freeze.strategies.block_coordinate import BlockCoordinate
from lightning_freeze.strategies.chain_thaw import ChainThaw
from lightning_freeze.strategies.dynamic_freezing import DynamicFreezing
from lightning_freeze.strategies.l2sp import L2SP
from lightning_freeze.strategies.linear_probe import LinearProbeThenFineTune
from lightning_freeze.strategies.lisa import LISA
from lightning_freeze.strategies.policies import OneLayerAtATime, Policy, RandomLayers
from lightning_freeze.strategies.reinit_top_layers import ReinitTopLayers
from lightning_freeze.strategies.relative_gradient_lr import RelativeGradientLR
from lightning_freeze.strategies.ulmfit import ULMFiT

__all__ = [
    "L2SP",
    "LISA",
    "BlockCoordinate",
    "ChainThaw",
    "DynamicFreezing",
    "LinearProbeThenFineTune",
    "OneLayerAtATime",
    "Policy",
    "RandomLayers",
    "ReinitTopLayers",
    "RelativeGradientLR",
    "ULMFiT",
]
