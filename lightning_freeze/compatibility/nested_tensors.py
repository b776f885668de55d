"""``torch.nn.TransformerEncoder`` with frozen layers and a padding mask.

If its first layer is in eval mode and none of its inputs and weights requires grad, the encoder packs padded batches
into nested tensors, which layers in train mode do not support. Frozen layers are in eval mode during training too, so
packing is switched off while gradients are recorded. Validation still uses it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn


def keep_padded_in_training(module: nn.Module) -> Iterator[Callable[[], None]]:
    """Keep all encoders in a module from packing their batches while gradients are recorded.

    Args:
        module: The module that is being fitted.

    Returns:
        For each encoder, a function that undoes it.
    """
    for encoder in module.modules():
        if isinstance(encoder, nn.TransformerEncoder) and getattr(encoder, "use_nested_tensor", False):
            yield _without_packing(encoder)


def _without_packing(encoder: nn.TransformerEncoder) -> Callable[[], None]:
    run = encoder.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return run(*args, **kwargs)
        encoder.use_nested_tensor = False
        try:
            return run(*args, **kwargs)
        finally:
            encoder.use_nested_tensor = True

    encoder.forward = forward  # type: ignore[method-assign]
    return lambda: vars(encoder).pop("forward", None) and None
