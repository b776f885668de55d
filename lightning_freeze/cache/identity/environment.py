"""What the arithmetic of a forward pass depends on besides weights and inputs."""

from __future__ import annotations

import contextlib
from typing import Any

import torch


def environment(device: torch.device) -> str:
    """Return what the arithmetic of a forward pass depends on besides weights and inputs.

    Args:
        device: Where the pass runs.
    """
    kind = device.type
    autocast = str(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else "off"
    return f"{kind}, autocast {autocast}, float32 {_float32_precision(kind)}"


def _float32_precision(kind: str) -> str:
    """Return how products of float32 are computed. Reading the older setting fails where the newer ones are used."""
    backends = torch.backends
    owner = backends.cudnn if kind == "cuda" else backends.mkldnn
    places: list[Any] = [backends, backends.cuda.matmul if kind == "cuda" else getattr(owner, "matmul", None)]
    places += [getattr(owner, "conv", None), owner if kind == "cuda" else None]
    found = [str(getattr(place, "fp32_precision", "")) for place in places]
    with contextlib.suppress(RuntimeError):
        found.append(torch.get_float32_matmul_precision())
    return " ".join(filter(None, found))
