"""The best weights of the running phase, from which the next phase can start."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from lightning_freeze.checkpoints.named_tensors import named_tensors
from lightning_freeze.distributed import gathered, write
from lightning_freeze.schedule.triggers import improves


class BestWeights:
    """A copy in CPU memory of the parameters that train in the phase, from its best validation.

    Each rank keeps its own part of parameters that are sharded over ranks. A checkpoint holds whole parameters.

    Args:
        mode: ``"min"`` if a lower value is better, ``"max"`` if a higher one is.
    """

    def __init__(self, mode: Literal["min", "max"]) -> None:
        self.mode = mode
        self.value: float | None = None
        self._tensors: dict[str, Tensor] = {}

    def observe(self, module: Module, value: float) -> None:
        """Copy the trainable parameters and all buffers if ``value`` is finite and the best one so far."""
        if improves(value, self.value, self.mode):
            self.value = value
            self._tensors = {
                name: tensor.detach().to("cpu", copy=True)
                for name, tensor in named_tensors(module).items()
                if isinstance(tensor, Tensor) and (tensor.requires_grad or not isinstance(tensor, Parameter))
            }

    @torch.no_grad()
    def restore(self, module: Module) -> float | None:
        """Write the copy back and forget it; returns the value that it had, ``None`` if there is no copy."""
        value = self.value
        if value is not None:
            current = named_tensors(module)
            for name, tensor in self._tensors.items():
                write(current[name], tensor)
        self.forget()
        return value

    def forget(self) -> None:
        """Forget the copy and its value."""
        self.value, self._tensors = None, {}

    def state_dict(self) -> dict[str, Any]:
        """The copy and its value; must be called on all ranks, where parameters are sharded."""
        return {"value": self.value, "tensors": {name: gathered(tensor) for name, tensor in self._tensors.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.value = state["value"]
        self._tensors = {name: tensor.detach().to("cpu", copy=True) for name, tensor in state["tensors"].items()}
