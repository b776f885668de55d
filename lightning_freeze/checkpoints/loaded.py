"""Whether transformers has loaded a weight from a pre-trained checkpoint."""

from __future__ import annotations

from torch import Tensor


def is_loaded(tensor: Tensor) -> bool:
    """Whether transformers has loaded a parameter or buffer from a checkpoint; it marks those, and only those.

    Args:
        tensor: The parameter or buffer. Copies of it, such as those of ``copy.deepcopy``, have no mark.
    """
    return getattr(tensor, "_is_hf_initialized", False) is True
