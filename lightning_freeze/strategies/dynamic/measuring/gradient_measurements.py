"""What the gradients of a turn say about each layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_freeze.distributed import gathered, whole, write
from lightning_freeze.strategies.dynamic.measuring.measurement import Measurement, NamedParameters, exact


class AccumulatedGradient(Measurement):
    """The L1 norm of the sum of all gradients; holds one more copy of the gradients."""

    def __init__(self, layers: Mapping[str, NamedParameters], rest: NamedParameters = ()) -> None:
        super().__init__(layers, rest)
        self._sums: dict[str, Tensor] = {}

    @torch.no_grad()
    def before_step(self) -> None:  # noqa: D102
        for name, parameter in self.parameters():
            if parameter.grad is not None:
                # A loss scaler skips a step whose gradients are not finite.
                gradient = parameter.grad.to(_wide(parameter)).nan_to_num(0.0, 0.0, 0.0)
                self._sums[name] = gradient + self._sums[name] if name in self._sums else gradient

    def values(self) -> dict[str, float]:  # noqa: D102
        norms = {name: float(whole(torch.linalg.vector_norm(total, 1))) for name, total in self._sums.items()}
        return {layer: sum(norms.get(name, 0.0) for name, _ in named) for layer, named in self.layers.items()}

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return {name: gathered(total) for name, total in self._sums.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: D102
        for name, parameter in self.parameters():
            if name in state:
                self._sums[name] = torch.zeros_like(parameter, dtype=_wide(parameter), requires_grad=False)
                write(self._sums[name], state[name])


class FisherTrace(Measurement):
    """The mean over steps of the squared norm of the gradient: the trace of the empirical Fisher information."""

    def __init__(self, layers: Mapping[str, NamedParameters], rest: NamedParameters = ()) -> None:
        super().__init__(layers, rest)
        self._sums: dict[str, Tensor] = {}
        self._steps = 0

    @torch.no_grad()
    def before_step(self) -> None:  # noqa: D102
        self._steps += 1
        for layer, named in self.layers.items():
            gradients = [parameter.grad for _, parameter in named if parameter.grad is not None]
            norms = [whole(torch.linalg.vector_norm(gradient)).to(exact(gradient)) for gradient in gradients]
            if norms:
                total = torch.stack(norms).nan_to_num(0.0, 0.0, 0.0).square().sum()
                self._sums[layer] = total + self._sums[layer] if layer in self._sums else total

    def values(self) -> dict[str, float]:  # noqa: D102
        steps = max(1, self._steps)
        return {layer: float(self._sums[layer]) / steps if layer in self._sums else 0.0 for layer in self.layers}

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return {"steps": self._steps, "sums": {layer: float(total) for layer, total in self._sums.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: D102
        self._steps = state["steps"]
        for layer, named in self.layers.items():
            if layer in state["sums"]:
                like = named[0][1]
                self._sums[layer] = torch.tensor(state["sums"][layer], dtype=exact(like), device=like.device)


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
