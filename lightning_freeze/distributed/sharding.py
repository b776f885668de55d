"""Parameters that are sharded over ranks, as ``fully_shard`` (FSDP2) leaves them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a ``DTensor``, of which each rank holds a part."""
    return isinstance(tensor, _types()[0])


def reshard(module: Module) -> None:
    """Restore the sharded parameters after a forward pass that has left the gathered ones in the module.

    A forward pass without a backward pass, as in validation, leaves the gathered parameters of the outermost module in
    place. They look like those of the module, but setting their gradient or ``requires_grad`` has no lasting effect.
    """
    for part in _fsdp_modules(module):
        part.reshard()


def renew(module: Module) -> None:
    """Make each sharded module read again which of its parameters train; must be called on all ranks.

    At the first forward pass, a module derives the dtype for reducing gradients from its trainable parameters. Under
    mixed precision, a module that was entirely frozen then would return gradients of another dtype than its parameters.
    """
    for part in _fsdp_modules(module):
        # No public name shows whether there was a forward pass; before the first one, there is nothing to update.
        if part._get_fsdp_state()._is_root is not None:
            part.unshard()
            part.reshard()


def gathered(tensor: Tensor) -> Tensor:
    """A whole tensor in CPU memory, to be saved; must be called on all ranks if it is sharded.

    As in Lightning for weights, only the first rank keeps the gathered tensor, because it saves the checkpoint.
    """
    if not is_sharded(tensor):
        return tensor
    sharded: Any = tensor
    # A copy of a shard in CPU memory has to be moved to the device, where the ranks can exchange it.
    whole: Tensor = sharded.to(sharded.device_mesh.device_type).full_tensor()
    return whole.cpu() if torch.distributed.get_rank() == 0 else torch.empty(0)


def whole(tensor: Tensor) -> Tensor:
    """A whole tensor, on every rank and its own device; must be called on all ranks if it is sharded."""
    sharded: Any = tensor
    return sharded.full_tensor() if is_sharded(tensor) else tensor


@torch.no_grad()
def write(target: Tensor, source: Tensor) -> None:
    """Copy a tensor, or this rank's part of it if ``target`` is sharded and ``source`` is not."""
    if is_sharded(target) and not is_sharded(source):
        distribute = _types()[2]
        sharded: Any = target
        source = distribute(source.to(target.device), sharded.device_mesh, sharded.placements)
    target.copy_(source)


def _fsdp_modules(module: Module) -> Iterator[Any]:
    for part in module.modules():
        if isinstance(part, _types()[1]):
            yield part


@cache
def _types() -> tuple[Any, Any, Any]:
    # Some builds of torch lack them, and they have moved: DTensor in torch 2.5, FSDPModule in 2.6.
    if not torch.distributed.is_available():
        return (), (), None
    try:
        from torch.distributed.tensor import DTensor, distribute_tensor
    except ImportError:
        from torch.distributed._tensor import DTensor, distribute_tensor  # type: ignore[attr-defined]
    try:
        from torch.distributed.fsdp import FSDPModule
    except ImportError:
        from torch.distributed._composable.fsdp import FSDPModule  # type: ignore[attr-defined]
    return DTensor, FSDPModule, distribute_tensor
