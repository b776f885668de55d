"""How much an optimizer step changes each layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from lightning_freeze.distributed import whole
from lightning_freeze.strategies.dynamic.measuring.measurement import Measurement, NamedParameters, exact


class UpdateSize(Measurement):
    """The mean relative change of a weight by one optimizer step; biases are left out, as published.

    A step that changes nothing at all is no measurement: its rate is 0, as at the start of a warm-up, or a loss scaler
    has skipped it.
    """

    def __init__(self, layers: Mapping[str, NamedParameters], rest: NamedParameters = ()) -> None:
        super().__init__(layers, rest)
        self._before: dict[str, Tensor] | None = None
        self._witness: tuple[Parameter, Tensor] | None = None
        self._values: dict[str, float] = {}

    def before_step(self) -> None:  # noqa: D102
        self._before = {
            name: parameter.detach().clone()
            for name, parameter in self.parameters()
            if parameter.grad is not None and (parameter.dim() > 1 or name.endswith("weight"))
        }
        # Where no measured layer moves, something else that trains tells whether the optimizer made a step.
        others = [parameter for _, parameter in self.rest if parameter.grad is not None]
        smallest = min(others, key=lambda parameter: parameter.numel(), default=None)
        self._witness = None if smallest is None else (smallest, smallest.detach().clone())

    def end_batch(self) -> None:  # noqa: D102
        before, self._before = self._before, None
        if before is None:
            return  # gradients are accumulated
        found = {}
        for layer, named in self.layers.items():
            changes = [_change(before[name], parameter.detach()) for name, parameter in named if name in before]
            found[layer] = torch.stack(changes).sum(0).tolist() if changes else None
        is_step = any(change is not None and change[2] > 0 for change in found.values()) or self._witness_moved()
        for layer, change in found.items():
            if change is None:
                self._values[layer] = 0.0  # without a gradient
                continue
            relative, count, absolute = change
            # Only weights of zero have moved where there is an absolute change alone, as in the first step of LoRA.
            if relative > 0 or (is_step and not absolute):
                self._values[layer] = relative / max(1.0, count)

    def _witness_moved(self) -> bool:
        if self._witness is None:
            return False
        parameter, before = self._witness
        return float(whole((parameter.detach() - before).abs().sum())) > 0

    def values(self) -> dict[str, float]:  # noqa: D102
        return dict(self._values)

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return dict(self._values)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: D102
        self._values = dict(state)


def _change(before: Tensor, after: Tensor) -> Tensor:
    """The sum of the relative changes of weights other than zero, the number of these, and the sum of all changes."""
    is_zero, change = before == 0, (after - before).abs()
    relative = (change / before.abs().masked_fill(is_zero, 1.0)).masked_fill(is_zero, 0.0)
    sums = (relative.sum(dtype=exact(before)), (~is_zero).sum(), change.sum(dtype=exact(before)))
    return torch.stack([whole(each).to(exact(before)) for each in sums])
