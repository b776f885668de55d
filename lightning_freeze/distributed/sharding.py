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


def is_tensor_of_ranks(kind: type) -> bool:
    """Whether a class of tensors stands for parts on several ranks, or for the result of an exchange under way."""
    return kind.__module__.startswith(("torch.distributed.tensor", "torch.distributed._functional_collectives"))


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


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor; the tensor itself if it is not sharded. Does not communicate."""
    if not is_sharded(tensor):
        return tensor
    sharded: Any = tensor
    with torch.no_grad():  # with gradients it would be a view with a version counter of its own
        part: Tensor = sharded.to_local()
    return part


@torch.no_grad()
def whole(tensor: Tensor) -> Tensor:
    """The whole tensor, on every rank and its own device; must be called on all ranks if it is sharded."""
    if not is_sharded(tensor):
        return tensor
    sharded: Any = tensor
    found: Tensor = sharded.to(sharded.device_mesh.device_type).full_tensor()
    return found


def computation(module: Module, root: Module) -> str:
    """What a sharded module computes differently from the same module on one device, as text; empty if nothing.

    ``fully_shard`` gathers whole weights, so that only its mixed precision matters. Tensor parallelism computes parts,
    and adds them in another order.

    Args:
        module: The module, with its sharded parameters in place.
        root: The outermost module, which may gather parameters of the other one.
    """
    found = []
    gathered_later: set[int] = set()
    for part in _fsdp_modules(root):
        state = part._get_fsdp_state()  # no public name shows the policy, or which parameters are gathered
        if state._mp_policy.param_dtype is not None or state._mp_policy.output_dtype is not None:
            found.append(str(state._mp_policy))  # without both, a forward pass converts nothing
        for group in state._fsdp_param_groups:
            gathered_later |= {id(p.sharded_param) for p in group.fsdp_params if not p.is_dtensor}
    for name, parameter in module.named_parameters():
        if is_sharded(parameter) and id(parameter) not in gathered_later:
            sharded: Any = parameter
            found.append(f"{name} {sharded.placements} of {tuple(sharded.device_mesh.shape)}")
    return ", ".join(sorted(set(found)))


def unsharded_class(kind: type) -> type:
    """The class that a module had before ``fully_shard`` changed it; the class itself if it did not."""
    wrapper = _types()[1]
    if wrapper and issubclass(kind, wrapper) and len(kind.__bases__) == 2:
        return kind.__bases__[1]
    return kind


def gathers(module: Module) -> bool:
    """Whether a module, or one in it, gathers its weights in its forward pass."""
    return any(True for _ in _fsdp_modules(module))


def end_interrupted_forward(module: Module) -> None:
    """Bring sharded modules whose forward pass was left by an exception into the state after a forward pass.

    Args:
        module: The module that they are in; its own forward pass may be running.
    """
    for part in _fsdp_modules(module):
        state = part._get_fsdp_state()  # the public ``reset_iter_state`` is for the whole model, and drops gradients
        if part is module or state._training_state.name != "FORWARD":
            continue
        idle = type(state._training_state).IDLE
        state._training_state = idle
        for group in state._fsdp_param_groups:
            group._training_state = idle
        part.reshard()


def drop_prefetched(module: Module) -> None:
    """Drop weights that were gathered ahead for modules that were not called after all. Does not communicate.

    The next forward pass would use them even if the weights have changed until then.

    Args:
        module: The module that they are in.
    """
    for part in _fsdp_modules(module):
        # No public name shows whether weights are on their way. If they are, this waits for them.
        if any(group._all_gather_result is not None for group in part._get_fsdp_state()._fsdp_param_groups):
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
