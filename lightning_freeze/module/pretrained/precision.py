"""The precision in which a model is loaded, and a warning if weights would be trained in 16 bits unintentionally."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from packaging.version import Version
from torch import nn

from lightning_freeze.errors import ConfigurationError, suggest

DTYPE_ARGUMENT = "dtype" if Version(transformers.__version__) >= Version("4.56") else "torch_dtype"
"""The name of the argument of ``from_pretrained`` in the installed version of transformers."""

_HALF = (torch.float16, torch.bfloat16)
_NAMES = ("auto", "float32", "float64", "bfloat16", "float16")
_SHORT = {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32", "float": "float32"}


def take_dtype(settings: dict[str, Any]) -> Any:
    """Take the precision out of keyword arguments for ``from_pretrained``.

    Args:
        settings: The arguments; ``dtype`` and ``torch_dtype`` are removed.

    Returns:
        A floating-point ``torch.dtype``, ``"auto"`` for what the checkpoint says, or None if neither was given.

    Raises:
        ConfigurationError: The value is no floating-point type.
    """
    given = [settings.pop(name) for name in ("dtype", "torch_dtype") if name in settings]
    value = next((item for item in given if item is not None), None)
    if value is None or value == "auto":
        return value
    dtype = getattr(torch, value.removeprefix("torch."), None) if isinstance(value, str) else value
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        hint = f" Did you mean {_SHORT[value]!r}?" if value in _SHORT else suggest(value, _NAMES)
        raise ConfigurationError(f"model_kwargs: dtype is {value!r}: expected one of {', '.join(_NAMES)}.{hint}")
    return dtype


def dtype_argument(dtype: Any, quantised: bool) -> dict[str, Any]:
    """Return the keyword arguments by which a model is loaded in the right precision.

    The weights that an optimizer updates are float32, whatever precision the checkpoint was saved in: in float16 small
    gradients vanish and large values overflow, in bfloat16 most updates at fine-tuning rates are lost in rounding
    (Micikevicius et al., 2018, "Mixed Precision Training", section 3.1). A Trainer with ``precision="bf16-true"`` or
    ``"16-true"`` converts the module afterwards. A quantised model keeps what its quantisation asks for.

    Args:
        dtype: What :func:`take_dtype` returned.
        quantised: Whether the model is quantised.
    """
    if dtype is None:
        return {} if quantised else {DTYPE_ARGUMENT: torch.float32}
    return {DTYPE_ARGUMENT: dtype}


def warn_about_half_precision(module: nn.Module, precision: str) -> None:
    """Warn if weights are to be trained in 16 bits although the Trainer was not asked to.

    Args:
        module: The module before the strategy converts or shards it.
        precision: The Trainer's precision.
    """
    if precision not in ("32-true", "16-mixed", "bf16-mixed"):
        return
    half = {name: p.dtype for name, p in module.named_parameters() if p.requires_grad and p.dtype in _HALF}
    if half:
        name, dtype = next(iter(half.items()))
        short = str(dtype).removeprefix("torch.")
        rank_zero_warn(
            f"{len(half)} trainable parameters are {short}, for example {name!r}: small updates are lost in rounding"
            f"{', and large values overflow' if dtype is torch.float16 else ''}. Load the model with "
            f"from_pretrained(..., {DTYPE_ARGUMENT}=torch.float32), or set the Trainer's precision to 'bf16-true' to "
            "train in 16 bits on purpose."
        )
