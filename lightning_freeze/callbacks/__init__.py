"""The callbacks: each decides *when*; what happens then is done by the modules beside this folder."""

from lightning_freeze.callbacks.discriminative_lr import DiscriminativeLR
from lightning_freeze.callbacks.frozen_prefix_cache import FrozenPrefixCache
from lightning_freeze.callbacks.gradual_unfreezing import GradualUnfreezing
from lightning_freeze.callbacks.layer_freezing import LayerFreezing
from lightning_freeze.callbacks.phased_fine_tuning import PhasedFineTuning

__all__ = ["DiscriminativeLR", "FrozenPrefixCache", "GradualUnfreezing", "LayerFreezing", "PhasedFineTuning"]
