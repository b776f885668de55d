"""Undoes what planning does to a module, its data and the random number generators."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import nn
from torch.optim import Optimizer

from lightning_freeze.cache.checks.side_effects import isolated
from lightning_freeze.cache.prefix.random_state import RandomState


@contextmanager
def unchanged(module: LightningModule, datamodule: LightningDataModule | None) -> Iterator[None]:
    """Restore a module and the random number generators on exit, whatever a fit has done to them.

    Args:
        module: The module: its submodules, tensors, dtypes, gradients, modes and attributes are restored.
        datamodule: Its attributes are restored, if there is one.
    """
    device = next((p.device for p in module.parameters() if p.device.type != "meta"), torch.device("cpu"))
    with ExitStack() as undo:
        for each in list(module.modules()):
            undo.callback(_restore_module, each, dict(vars(each)), _containers(each))
            for optimizer in [value for value in vars(each).values() if isinstance(value, Optimizer)]:
                undo.callback(_restore_groups, optimizer, [dict(group) for group in optimizer.param_groups])
        for parameter in module.parameters():
            undo.callback(_restore_tensor, parameter, parameter.data, parameter.grad, parameter.requires_grad)
            parameter.grad = None  # or the precision plugin would convert it
        if datamodule is not None:
            undo.callback(_restore_attributes, datamodule, dict(vars(datamodule)))
        undo.enter_context(isolated(module, RandomState(device), device))
        undo.enter_context(torch.enable_grad())
        yield


def _containers(module: nn.Module) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """What every module has: its parameters, buffers, submodules and hooks, each with its content now."""
    return [(value, dict(value)) for name, value in vars(module).items() if name in _OWN and isinstance(value, dict)]


_OWN = frozenset(vars(nn.Module()))


def _restore_module(
    module: nn.Module, attributes: dict[str, Any], containers: list[tuple[dict[str, Any], dict[str, Any]]]
) -> None:
    for container, content in containers:
        container.clear()
        container.update(content)
    _restore_attributes(module, attributes)


def _restore_attributes(owner: object, attributes: dict[str, Any]) -> None:
    vars(owner).clear()
    vars(owner).update(attributes)


def _restore_groups(optimizer: Optimizer, groups: list[dict[str, Any]]) -> None:
    del optimizer.param_groups[len(groups) :]
    for group, given in zip(optimizer.param_groups, groups, strict=True):
        group.clear()
        group.update(given)


def _restore_tensor(
    parameter: nn.Parameter, data: torch.Tensor, gradient: torch.Tensor | None, requires_grad: bool
) -> None:
    parameter.data = data  # of another dtype where the precision plugin has converted the module
    parameter.grad = gradient
    parameter.requires_grad_(requires_grad)
