"""What a run knows about each layer at one moment, as plain records."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import NamedTuple

from torch.nn import Parameter

from lightning_freeze.layers import Layer
from lightning_freeze.layers.analysis.unused_copies import unused_copies
from lightning_freeze.schedule.triggers import Clock
from lightning_freeze.session.session import Session


class LayerRow(NamedTuple):
    """One layer.

    Attributes:
        name: Its name in the stack.
        size: Number of elements in its parameters.
        tensors: Number of its parameters.
        trainable: How many of them train.
        rates: The distinct learning rates of its trainable parameters, ascending; empty before an optimizer holds any.
        since: When the last of them began to train, where a schedule decides about it.
        is_bystander: Whether the layer belongs to a network that takes no part in training.
    """

    name: str
    size: int
    tensors: int
    trainable: int
    rates: tuple[float, ...]
    since: Clock | None
    is_bystander: bool = False


def layer_rows(session: Session) -> list[LayerRow]:
    """One record for each layer of a run.

    Args:
        session: The running fit.
    """
    rates: dict[Parameter, float] = {}
    for optimizer in session.trainer.optimizers:
        rates.update(session.rates.rates_of(optimizer))
    unused = unused_copies(session.module)
    return [_row(layer, session.since, rates, unused) for layer in session.stack]


def _row(
    layer: Layer, since: Mapping[Parameter, Clock], rates: Mapping[Parameter, float], unused: AbstractSet[Parameter]
) -> LayerRow:
    parameters = [parameter for parameter in layer.parameters() if parameter not in unused]
    trains = [parameter for parameter in parameters if parameter.requires_grad]
    starts = [since[parameter] for parameter in trains if parameter in since]
    return LayerRow(
        name=layer.name,
        size=sum(parameter.numel() for parameter in parameters),
        tensors=len(parameters),
        trainable=len(trains),
        rates=tuple(sorted({rates[parameter] for parameter in trains if parameter in rates})),
        since=max(starts, default=None),
        is_bystander=layer.is_bystander,
    )
