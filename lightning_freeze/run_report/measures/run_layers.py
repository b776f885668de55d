"""The layers of a run, as lists of parameters that are quick to look at in each batch."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor
from torch.nn import Parameter
from torch.nn.parameter import UninitializedParameter

from lightning_freeze.layers import LayerStack
from lightning_freeze.layers.analysis.unused_copies import unused_copies


class RunLayers:
    """The layers that take part in training, with their parameters.

    Args:
        stack: All layers of the module.

    Attributes:
        stack: The same.
        names: Names of the layers, in order.
        parameters: The parameters of each layer, by full name.
    """

    def __init__(self, stack: LayerStack) -> None:
        self.stack = stack
        unused = unused_copies(stack.module)
        layers = [layer for layer in stack if not layer.is_bystander and layer.parameters()]
        self.names = [layer.name for layer in layers]
        self.parameters: list[dict[str, Parameter]] = [
            {name: p for name, p in layer.named_parameters() if p not in unused} for layer in layers
        ]
        self._all = [p for parameters in self.parameters for p in parameters.values()]
        self._layer_of = {p: i for i, parameters in enumerate(self.parameters) for p in parameters.values()}

    @property
    def sizes(self) -> list[int]:
        """Number of elements in the parameters of each layer."""
        return [sum(map(elements, parameters.values())) for parameters in self.parameters]

    def requires_grad(self) -> list[bool]:
        """For each parameter of any layer, whether it requires grad: quick, to be compared from batch to batch."""
        return [parameter.requires_grad for parameter in self._all]

    def trainable(self) -> list[int]:
        """For each layer, how many elements of its parameters train."""
        return [sum(elements(p) for p in each.values() if p.requires_grad) for each in self.parameters]

    def by_layer(self, parameters: Iterable[Parameter]) -> dict[int, list[Parameter]]:
        """Sort parameters by the index of their layer; those in no layer are left out."""
        found: dict[int, list[Parameter]] = {}
        for parameter in parameters:
            index = self._layer_of.get(parameter)
            if index is not None:
                found.setdefault(index, []).append(parameter)
        return found


def elements(parameter: Parameter) -> int:
    """Number of elements; 0 for a parameter that is not initialised yet."""
    return 0 if isinstance(parameter, UninitializedParameter) else parameter.numel()


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor in this process, which is all of it unless a strategy shards it."""
    to_local = getattr(tensor, "to_local", None)
    found: Tensor = tensor.detach() if to_local is None else to_local().detach()
    return found
