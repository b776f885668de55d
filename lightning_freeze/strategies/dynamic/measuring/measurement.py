"""Measures one number for each layer in the course of a turn, from the gradients and steps of the training itself.

Nothing is computed twice: no measurement has a forward or backward pass of its own. Where parameters are sharded, the
numbers are those of whole parameters.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

NamedParameters = Sequence[tuple[str, Parameter]]


class Measurement(ABC):
    """What is measured in one turn.

    Args:
        layers: The parameters of each layer that is measured, with their full names.
        rest: Those of all other layers.
    """

    def __init__(self, layers: Mapping[str, NamedParameters], rest: NamedParameters = ()) -> None:
        self.layers = layers
        self.rest = rest

    @abstractmethod
    def before_step(self) -> None:
        """An optimizer is about to make a measured step; gradients are unscaled and not clipped yet."""

    def end_batch(self) -> None:  # noqa: B027  (most measurements are over by then)
        """A batch has ended, with or without an optimizer step."""

    @abstractmethod
    def values(self) -> dict[str, float]:
        """The value of each layer, 0 for one that has had no gradient; must be called on all ranks.

        Layers that could not be measured in the turn are left out.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """What has been measured so far in the turn; must be called on all ranks."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""

    def parameters(self) -> Iterator[tuple[str, Parameter]]:
        """The measured parameters with their full names."""
        for named in self.layers.values():
            yield from named


def exact(tensor: Tensor) -> torch.dtype:
    """The dtype in which numbers about a tensor are added up."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64
