"""The callbacks: each decides *when*; what happens then is done by the modules beside this folder."""

from lightning_freeze.callbacks.cache import FrozenPrefixCache
from lightning_freeze.callbacks.discriminative import DiscriminativeLR
from lightning_freeze.callbacks.freezing import LayerFreezing
from lightning_freeze.callbacks.gradual import GradualUnfreezing
from lightning_freeze.callbacks.phased import PhasedFineTuning

__all__ = ["DiscriminativeLR", "FrozenPrefixCache", "GradualUnfreezing", "LayerFreezing", "PhasedFineTuning"]
