"""What a few batches want to change: relative gradient norms and the trace of the Fisher information, by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Parameter


@dataclass(frozen=True)
class LayerGradients:
    """What the gradients of one layer say.

    Attributes:
        relative_norm: The norm of the gradient of a batch divided by the norm of the weights, averaged over the
            batches (Lee et al. 2022, arXiv:2210.11466); infinite if all weights are 0.
        fisher_trace: The sum of the squared gradients of single examples, averaged over the examples: the trace of the
            empirical Fisher information (Liu et al. 2023, arXiv:2301.05487, choose the layer to unfreeze by it); NaN
            if no example was measured.
    """

    relative_norm: float
    fisher_trace: float


def relative_norm(gradients: Iterable[Tensor], weights: Iterable[Tensor]) -> float:
    """The norm of some gradients, taken together, divided by that of the weights.

    Args:
        gradients: The gradients.
        weights: The weights.
    """
    size, norm = _norm(weights), _norm(gradients)
    return norm / size if size else float("inf")


def gradients_by_layer(
    layers: Mapping[str, Sequence[Parameter]],
    batches: Iterable[tuple[Callable[[], Tensor], Iterable[Callable[[], Tensor]]]],
) -> dict[str, LayerGradients]:
    """Measure all layers on some batches. No ``.grad`` is written.

    Args:
        layers: The parameters of each layer; those that do not require a gradient are left out.
        batches: For each batch a function that computes its loss, and one for the loss of each of its examples.

    Returns:
        By layer; layers without parameters that require a gradient are left out.

    Raises:
        ValueError: If there is no batch.
    """
    trained = {name: [p for p in parameters if p.requires_grad] for name, parameters in layers.items()}
    trained = {name: parameters for name, parameters in trained.items() if parameters}
    ratios: dict[str, list[float]] = {name: [] for name in trained}
    squares: dict[str, list[float]] = {name: [] for name in trained}
    for loss, example_losses in batches:
        for name, gradients in _gradients(trained, loss()).items():
            ratios[name].append(relative_norm(gradients, trained[name]))
        for example_loss in example_losses:
            for name, gradients in _gradients(trained, example_loss()).items():
                squares[name].append(_norm(gradients) ** 2)
    if trained and not next(iter(ratios.values())):
        raise ValueError("There is no batch to measure gradients on: expected one at least.")
    return {name: LayerGradients(_mean(ratios[name]), _mean(squares[name])) for name in trained}


def _gradients(layers: Mapping[str, Sequence[Parameter]], loss: Tensor) -> dict[str, list[Tensor]]:
    parameters = [parameter for group in layers.values() for parameter in group]
    found = iter(torch.autograd.grad(loss, parameters, allow_unused=True))
    return {name: [g for _ in group if (g := next(found)) is not None] for name, group in layers.items()}


def _norm(tensors: Iterable[Tensor]) -> float:
    norms = [torch.linalg.vector_norm(tensor.detach().float()) for tensor in tensors]
    return float(torch.stack(norms).norm()) if norms else 0.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
