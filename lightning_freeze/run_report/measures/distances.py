"""How far each layer has moved from its starting weights.

Kept are not all starting weights but a sample of them: of each tensor at most 16,384 elements, at places drawn once.
That takes at most 64 KiB for each tensor, 5 MB for BERT-base, and no pass over all weights. For tensors that are not
larger the distance is exact; for others it is an estimate, with an error of about 1%. It is larger where only few rows
of an embedding matrix have moved, because the sample may hold few of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.parameter import UninitializedParameter

from lightning_freeze.run_report.history.records import PerLayer
from lightning_freeze.run_report.measures.run_layers import RunLayers, local

_MOST = 16_384


class StartingWeights:
    """A sample of the weights at the start of the run.

    Args:
        layers: The layers of the run.
    """

    def __init__(self, layers: RunLayers) -> None:
        self._layers = layers
        self._kept: dict[str, tuple[int, Tensor]] = {}
        self._places: dict[tuple[int, torch.device], Tensor] = {}

    def keep(self) -> None:
        """Keep the present weights of all parameters of which none are kept yet."""
        for parameters in self._layers.parameters:
            for name, parameter in parameters.items():
                if not _is_measured(parameter):
                    continue
                part = local(parameter)
                if self._kept.get(name, (-1, None))[0] != part.numel():  # unknown, or sharded in another way
                    self._kept[name] = part.numel(), self._sample(part)

    def distances(self, known: PerLayer | None = None) -> PerLayer:
        """The relative L2 distance of each layer: 0 for one that has not moved.

        This waits for the device.

        Args:
            known: The distances that were measured before. If they are given, only layers that train now are measured.
        """
        found: list[float | Tensor | None] = list(known) if known is not None else [None] * len(self._layers.names)
        for index, parameters in enumerate(self._layers.parameters):
            if known is None or any(p.requires_grad for p in parameters.values()):
                found[index] = self._distance(parameters)
        return [value if value is None else float(value) for value in found]

    def state_dict(self) -> dict[str, Any]:
        """The sample as plain data with tensors."""
        return {name: [size, sample.cpu()] for name, (size, sample) in self._kept.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self._kept = {name: (size, sample) for name, (size, sample) in state.items()}

    def _distance(self, parameters: Mapping[str, Parameter]) -> Tensor | None:
        moved: list[Tensor] = []
        started: list[Tensor] = []
        for name, parameter in parameters.items():
            if name not in self._kept or not _is_measured(parameter):
                continue
            part = local(parameter)
            size, sample = self._kept[name]
            if size != part.numel() or not size:
                continue
            if sample.device != part.device:
                sample = sample.to(part.device)
                self._kept[name] = size, sample
            scale = (size / sample.numel()) ** 0.5
            moved.append(scale * torch.linalg.vector_norm(self._sample(part) - sample))
            started.append(scale * torch.linalg.vector_norm(sample))
        if not moved:
            return None
        device = moved[0].device
        distance = torch.linalg.vector_norm(torch.stack([each.to(device) for each in moved]))
        start = torch.linalg.vector_norm(torch.stack([each.to(device) for each in started]))
        return torch.where(start > 0, distance / start, distance)

    def _sample(self, tensor: Tensor) -> Tensor:
        flat = tensor.reshape(-1)
        if flat.numel() > _MOST:
            flat = flat[self._places_in(flat.numel(), flat.device)]
        return flat.to(torch.float32, copy=True)

    def _places_in(self, size: int, device: torch.device) -> Tensor:
        key = size, device
        if key not in self._places:
            generator = torch.Generator().manual_seed(0)  # the same places in each process, also after a resume
            self._places[key] = torch.randint(0, size, (_MOST,), generator=generator).to(device)
        return self._places[key]


def _is_measured(parameter: Parameter) -> bool:
    return parameter.is_floating_point() and not isinstance(parameter, UninitializedParameter) and not parameter.is_meta
