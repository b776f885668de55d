"""Norms of gradients and weights, by layer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from lightning_freeze.run_report.history.records import PerLayer
from lightning_freeze.run_report.measures.run_layers import RunLayers, local


class GradientNorms:
    """The norms of one batch. They stay on the device until they are read, so that measuring waits for nothing.

    Args:
        layers: The layers of the run.
    """

    def __init__(self, layers: RunLayers) -> None:
        self._layers = layers
        # Several optimizers may hold parts of one layer, and one of them may step several times in a batch.
        self._found: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def measure(self, optimizer: Optimizer | None, parameters: Iterable[Parameter]) -> None:
        """Note the norms of what an optimizer is about to move.

        Args:
            optimizer: The optimizer, ``None`` if it is not known.
            parameters: Its parameters.
        """
        with_gradient = (p for p in parameters if p.grad is not None and p.is_floating_point())
        for index, each in self._layers.by_layer(with_gradient).items():
            gradients = [p.grad for p in each if p.grad is not None]
            self._found[id(optimizer), index] = _norm(gradients), _norm(each)

    def read(self) -> tuple[PerLayer, PerLayer]:
        """The norm of each layer's gradient, and the same divided by the norm of its weights.

        This waits for the device.
        """
        gradients: PerLayer = [None] * len(self._layers.names)
        weights: PerLayer = [None] * len(self._layers.names)
        for (_, index), (gradient, weight) in self._found.items():
            gradients[index] = _joined(gradients[index], float(gradient))
            weights[index] = _joined(weights[index], float(weight))
        self._found.clear()
        relative = [None if g is None or not w else g / w for g, w in zip(gradients, weights, strict=True)]
        return gradients, relative


def _joined(norm: float | None, other: float) -> float:
    return other if norm is None else float((norm**2 + other**2) ** 0.5)


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    norms = [torch.linalg.vector_norm(values, dtype=_precision(values)) for values in map(_values, tensors)]
    joined: Tensor = torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms]))
    return joined


def _values(tensor: Tensor) -> Tensor:
    part = local(tensor)
    return part.coalesce().values() if part.is_sparse else part


def _precision(values: Tensor) -> torch.dtype | None:
    # The square of a number in half precision may be too large for it.
    return torch.float32 if values.dtype in (torch.float16, torch.bfloat16) else None
