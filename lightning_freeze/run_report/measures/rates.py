"""The learning rate at which each layer trains."""

from __future__ import annotations

from lightning.pytorch import LightningModule
from torch.nn import Parameter
from torch.optim import Optimizer

from lightning_freeze.run_report.history.records import PerLayer
from lightning_freeze.run_report.measures.run_layers import RunLayers
from lightning_freeze.session.moments import Moments


class LayerRates:
    """The highest rate of each layer in one batch.

    Args:
        layers: The layers of the run.
        module: The module that is being fitted.
    """

    def __init__(self, layers: RunLayers, module: LightningModule) -> None:
        self._layers = layers
        self._module = module
        self._found: PerLayer = [None] * len(layers.names)

    def measure(self, optimizer: Optimizer) -> None:
        """Note the rates of what an optimizer is about to move."""
        rates = {parameter: rate for parameter, rate in self._rates_of(optimizer).items() if parameter.requires_grad}
        for index, parameters in self._layers.by_layer(rates).items():
            highest = max(rates[parameter] for parameter in parameters)
            self._found[index] = max(highest, self._found[index] or 0.0)

    def read(self) -> PerLayer:
        """The rates that were noted since the last time; ``None`` for layers that do not train."""
        found, self._found = self._found, [None] * len(self._layers.names)
        return found

    def _rates_of(self, optimizer: Optimizer) -> dict[Parameter, float]:
        moments = Moments.of(self._module)
        if moments is not None:  # with the factors of the callbacks
            return moments.session.rates.rates_of(optimizer)
        return {
            parameter: float(group["lr"])
            for group in optimizer.param_groups
            if group.get("lr") is not None
            for parameter in group["params"]
        }
