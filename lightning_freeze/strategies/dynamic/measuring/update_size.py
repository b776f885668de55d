"""How much an optimizer step changes each layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_freeze.distributed import whole
from lightning_freeze.strategies.dynamic.measuring.measurement import Measurement, NamedParameters, exact


class UpdateSize(Measurement):
    """The mean relative change of a weight by one optimizer step; biases are left out, as published."""

    def __init__(self, layers: Mapping[str, NamedParameters]) -> None:
        super().__init__(layers)
        self._before: dict[str, Tensor] = {}
        self._values: dict[str, float] = {}

    def before_step(self) -> None:  # noqa: D102
        self._before = {
            name: parameter.detach().clone()
            for name, parameter in self.parameters()
            if parameter.grad is not None and (parameter.dim() > 1 or name.endswith("weight"))
        }

    def end_batch(self) -> None:  # noqa: D102
        before, self._before = self._before, {}
        for layer, named in self.layers.items():
            changes = [_change(before[name], parameter.detach()) for name, parameter in named if name in before]
            if changes:
                total, count = torch.stack(changes).sum(0).tolist()
                self._values[layer] = total / max(1.0, count)

    def values(self) -> dict[str, float]:  # noqa: D102
        return {layer: self._values.get(layer, 0.0) for layer in self.layers}

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return dict(self._values)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: D102
        self._values = dict(state)


def _change(before: Tensor, after: Tensor) -> Tensor:
    """The sum of the relative changes, and the number of weights that they are relative to: those other than zero."""
    is_zero = before == 0
    relative = ((after - before) / before.masked_fill(is_zero, 1.0)).abs().masked_fill(is_zero, 0.0)
    sums = (relative.sum(dtype=exact(before)), (~is_zero).sum())
    return torch.stack([whole(each).to(exact(before)) for each in sums])
