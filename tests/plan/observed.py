"""What the training steps of a fit keep."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor


class Observed(Callback):
    """Notes, for each training batch, what trains and at which rates, and what the last step keeps."""

    def __init__(self) -> None:
        self.trains: list[frozenset[str]] = []
        self.rates: list[set[float]] = []
        self.gradients = self.state = self.activations = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.trains.append(frozenset(name for name, p in pl_module.named_parameters() if p.requires_grad))
        weights = {p.untyped_storage().data_ptr() for p in pl_module.parameters()}
        seen: dict[int, Tensor] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                seen.setdefault(storage.data_ptr(), tensor)
            return tensor

        self._seen = seen
        self._hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        self._hooks.__enter__()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self._hooks.__exit__(None, None, None)
        self.activations = sum(tensor.untyped_storage().nbytes() for tensor in self._seen.values())

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self.gradients = bytes_of(p.grad for p in pl_module.parameters())

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        states = [state for state in trainer.optimizers[0].state.values()]
        self.state = bytes_of(value for state in states for value in state.values())


def bytes_of(tensors: Iterable[Any]) -> int:
    """The size of some values that are tensors."""
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))
