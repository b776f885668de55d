"""The fingerprint of a weight: a hash of its dtype, its shape and its bytes."""

from __future__ import annotations

import torch
import xxhash
from torch import Tensor
from torch.nn import Parameter


def fingerprint(tensor: Tensor) -> str:
    """The 128-bit xxHash of a tensor, as 32 hexadecimal digits.

    Args:
        tensor: A tensor for which :func:`has_plain_content` holds, on any device.
    """
    content = tensor.detach().cpu().contiguous().resolve_conj().resolve_neg()
    entry = xxhash.xxh3_128(f"{content.dtype} {tuple(content.shape)};".encode())
    if content.numel():
        entry.update(content.reshape(-1).view(torch.uint8).numpy().data)
    return entry.hexdigest()


def has_plain_content(value: object) -> bool:
    """Whether a value is a whole, dense tensor that exists in memory.

    Quantised weights and sharded ones are of classes of their own, which decide themselves what loading does.
    """
    return type(value) in (Tensor, Parameter) and value.layout is torch.strided and not value.is_meta  # type: ignore[attr-defined]
