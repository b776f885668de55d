"""Published fine-tuning strategies, each a small callback on the same phases, holds and rates.

``ChainThaw``, ``LinearProbeThenFineTune`` and ``ULMFiT`` are lists of phases. ``dynamic/`` trains other layers every
few steps, as a policy chooses: ``LISA``, ``BlockCoordinate``, ``AutoFreeze``, ``FisherUnfreezing`` and ``SlimFit`` are
cases of its ``DynamicFreezing``. ``FreezeOut`` anneals layers until they are frozen, and ``SpectrumFreezing`` chooses
weight matrices. ``RelativeGradientLR`` scales rates, ``L2SP`` adds a penalty, ``ReinitTopLayers`` changes the start.

May import every room but ``cli`` and ``plan``. Begin reading with ``linear_probe.py``, the smallest strategy.
"""

from lightning_freeze.strategies.chain_thaw import ChainThaw
from lightning_freeze.strategies.dynamic.autofreeze import AutoFreeze, GrowingPrefix
from lightning_freeze.strategies.dynamic.block_coordinate import BlockCoordinate
from lightning_freeze.strategies.dynamic.dynamic_freezing import DynamicFreezing
from lightning_freeze.strategies.dynamic.fisher_unfreezing import FisherUnfreezing, LargestFisherNext
from lightning_freeze.strategies.dynamic.lisa import LISA
from lightning_freeze.strategies.dynamic.policies import MeasuringPolicy, OneLayerAtATime, Policy, RandomLayers
from lightning_freeze.strategies.dynamic.slimfit import LargestUpdates, SlimFit
from lightning_freeze.strategies.dynamic.statistics import Statistics
from lightning_freeze.strategies.freeze_out import FreezeOut
from lightning_freeze.strategies.l2sp import L2SP
from lightning_freeze.strategies.linear_probe import LinearProbeThenFineTune
from lightning_freeze.strategies.reinit_top_layers import ReinitTopLayers
from lightning_freeze.strategies.relative_gradient_lr import RelativeGradientLR
from lightning_freeze.strategies.spectrum_freezing import SpectrumFreezing
from lightning_freeze.strategies.ulmfit import ULMFiT

__all__ = [
    "L2SP",
    "LISA",
    "AutoFreeze",
    "BlockCoordinate",
    "ChainThaw",
    "DynamicFreezing",
    "FisherUnfreezing",
    "FreezeOut",
    "GrowingPrefix",
    "LargestFisherNext",
    "LargestUpdates",
    "LinearProbeThenFineTune",
    "MeasuringPolicy",
    "OneLayerAtATime",
    "Policy",
    "RandomLayers",
    "ReinitTopLayers",
    "RelativeGradientLR",
    "SlimFit",
    "SpectrumFreezing",
    "Statistics",
    "ULMFiT",
]
