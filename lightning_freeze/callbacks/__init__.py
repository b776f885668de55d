"""The callbacks: each says what is frozen or paced and when, never how.

A callback holds layers (``LayerFreezing``), asks for phases (``PhasedFineTuning``, ``GradualUnfreezing``), scales rates
(``DiscriminativeLR``) or reads what is frozen (``FrozenPrefixCache``). What happens then is done in the rooms below.

May import every room but ``cli``. Begin reading with ``layer_callback.py``, which all but the cache share, and
``layer_freezing.py``, the smallest callback.
"""

from lightning_freeze.callbacks.discriminative_lr import DiscriminativeLR
from lightning_freeze.callbacks.frozen_prefix_cache import FrozenPrefixCache
from lightning_freeze.callbacks.gradual_unfreezing import GradualUnfreezing
from lightning_freeze.callbacks.layer_freezing import LayerFreezing
from lightning_freeze.callbacks.phased_fine_tuning import PhasedFineTuning

__all__ = ["DiscriminativeLR", "FrozenPrefixCache", "GradualUnfreezing", "LayerFreezing", "PhasedFineTuning"]
