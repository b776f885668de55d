"""The weight at which a norm only normalises."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call


def identity_weight(norm: nn.Module) -> float:
    """The value of the weight of a norm at which it leaves what it has normalised as it is: 1, or 0.

    Most norms multiply by the weight. Those of Gemma, Qwen3-Next and Nemotron multiply by the weight plus 1, under
    class names that others have too. So the norm is run once with weights of zero: if the output is not zero as well,
    the identity is 0. Parameters, buffers and the random state stay as they are.

    Args:
        norm: The norm, with a parameter ``weight``.

    Returns:
        The value; 1 for a norm that cannot be run on a tensor alone.
    """
    if type(norm).__module__.startswith("torch.nn."):
        return 1.0
    weight, mode = norm.get_parameter("weight"), norm.training
    zeros = {name: _zeros(parameter) for name, parameter in norm.named_parameters()}
    buffers = {name: buffer.clone() for name, buffer in norm.named_buffers()}
    norm.training = False
    try:
        outputs = [_output(norm, zeros | buffers, shape) for shape in ((2, 3, *weight.shape), (2, *weight.shape, 3, 3))]
    finally:
        norm.training = mode
    output = next((each for each in outputs if each is not None), None)
    return 0.0 if output is not None and bool(output.any()) else 1.0


def _zeros(like: Tensor) -> Tensor:
    # A tensor on the meta device has no numbers to look at.
    return torch.zeros(like.shape, dtype=like.dtype, device="cpu" if like.is_meta else like.device)


def _output(norm: nn.Module, tensors: dict[str, Tensor], shape: tuple[int, ...]) -> Tensor | None:
    like = tensors["weight"]
    numbers = torch.linspace(-1, 1, torch.Size(shape).numel(), device=like.device)
    probe = numbers.reshape(shape).to(like.dtype)
    try:
        with torch.no_grad():
            output = functional_call(norm, tensors, (probe,))
    except Exception:  # a norm of other inputs, or a kernel for another device
        return None
    return output if isinstance(output, Tensor) else None
