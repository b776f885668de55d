"""Parameters, gradients and factors for loops over plain torch optimizers."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from lightning_freeze.rates.optimizer_rates import OptimizerRates

FACTORS = (0.25, 0.25, 0.5, 0.5, 1.0, 1.0)


def make_parameters(count: int = 6, dtype: torch.dtype = torch.float64) -> list[Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [Parameter(torch.randn(4, 3, dtype=dtype, generator=generator)) for _ in range(count)]


def set_gradients(parameters: Iterable[Parameter], step: int) -> None:
    for index, parameter in enumerate(parameters):
        generator = torch.Generator().manual_seed(1000 * step + index)
        parameter.grad = torch.randn(parameter.shape, dtype=parameter.dtype, generator=generator)


class Factors:
    """A source of one factor for each parameter; the factor may be a function, which is called at each step."""

    def __init__(self, parameters: Sequence[Parameter], factors: Sequence[float | Callable[[], float]]) -> None:
        self.factors = dict(zip(parameters, factors, strict=True))

    @property
    def owner(self) -> object:
        return self

    def rate_key(self, parameter: Parameter) -> Hashable:
        factor = self.factors.get(parameter, 1.0)
        return () if factor == 1 else factor

    def rate_factor(self, key: Any) -> float:
        return key() if callable(key) else key


def attached(
    parameters: Sequence[Parameter],
    optimizers: Optimizer | Sequence[Optimizer],
    factors: Sequence[float | Callable[[], float]] = FACTORS,
    freezes: bool = False,
    state: Any = None,
) -> OptimizerRates:
    rates = OptimizerRates()
    rates.sources.append(Factors(parameters, factors))
    rates.freezes = freezes
    rates.load_state_dict(state)
    rates.attach([optimizers] if isinstance(optimizers, Optimizer) else optimizers)
    return rates


def effective_rates(parameters: Sequence[Parameter], step: Callable[[], Any]) -> list[float]:
    """The rate of each parameter in one step of SGD, from its displacement under a gradient of 1."""
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
        parameter.data.zero_()
    step()
    return [-float(parameter.data.flatten()[0]) for parameter in parameters]


def groups_by_hand(parameters: Sequence[Parameter], factors: Sequence[float], lr: float) -> list[dict[str, Any]]:
    return [
        {"params": [p for p, f in zip(parameters, factors, strict=True) if f == factor], "lr": lr * factor}
        for factor in dict.fromkeys(factors)
    ]


def weights(parameters: Iterable[Parameter]) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in parameters]


def hooks_of(optimizer: Optimizer) -> int:
    return len(optimizer._optimizer_step_pre_hooks) + len(optimizer._optimizer_step_post_hooks)
