"""The memory that the tensors of a training step need."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.nn import Parameter
from torch.nn.parameter import UninitializedParameter
from torch.optim import Optimizer

from lightning_freeze.run_report.history.records import PhaseMemory
from lightning_freeze.run_report.measures.run_layers import local


def phase_memory(module: LightningModule, optimizers: Iterable[Optimizer], allocated: int | None) -> PhaseMemory:
    """Add up sizes of tensors in this process; their elements are not looked at.

    Args:
        module: The module that is being fitted.
        optimizers: Its optimizers.
        allocated: What the accelerator had allocated; ``None`` if it is not known.
    """
    parameters = [p for p in module.parameters() if not isinstance(p, UninitializedParameter)]
    can_train = [p for p in parameters if p.is_floating_point()]
    states = [(p, _nbytes(state)) for each in optimizers for p, state in each.state.items() if isinstance(p, Parameter)]
    optimizer = sum(size for _, size in states)
    # Every layer is assumed to need as much state per byte of its weights as those that have some.
    held = sum(_nbytes(p) for p, size in states if size)
    all_weights = sum(map(_nbytes, can_train))
    return PhaseMemory(
        weights=sum(map(_nbytes, [*parameters, *module.buffers()])),
        gradients=sum(_nbytes(p) for p in parameters if p.requires_grad),
        optimizer=optimizer,
        full_gradients=all_weights,
        full_optimizer=round(optimizer / held * all_weights) if held else 0,
        allocated=allocated,
    )


def allocated_memory(device: torch.device) -> int | None:
    """Bytes that tensors take on a CUDA device; ``None`` on others. Reads a counter and waits for nothing."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else None


def _nbytes(value: Any) -> int:
    return sum(local(tensor).nbytes for tensor in _tensors(value))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _tensors(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _tensors(each)
