from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_freeze.layers import LayerStack
from lightning_freeze.run_report.measures.distances import StartingWeights
from lightning_freeze.run_report.measures.run_layers import RunLayers


def layers_of(module: nn.Module) -> RunLayers:
    return RunLayers(LayerStack(module, groups={"low": ["low"], "top": ["top"]}))


class Model(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.low = nn.Linear(width, width)
        self.top = nn.Linear(width, 2)


def relative(module: nn.Module, start: dict[str, torch.Tensor], name: str) -> float:
    names = [each for each in start if each.startswith(name)]
    moved = sum(float((module.state_dict()[n] - start[n]).pow(2).sum()) for n in names)
    return float((moved / sum(float(start[n].pow(2).sum()) for n in names)) ** 0.5)


@pytest.mark.parametrize(("width", "error"), [(100, 1e-4), (1000, 0.02)])
def test_distance_is_exact_for_small_tensors_and_close_for_large_ones(width: int, error: float) -> None:
    module = Model(width)
    start = {name: value.clone() for name, value in module.state_dict().items()}
    kept = StartingWeights(layers_of(module))
    kept.keep()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    low, top = kept.distances()
    assert low == pytest.approx(relative(module, start, "low"), rel=error)
    assert top == pytest.approx(relative(module, start, "top"), rel=error)


def test_little_is_kept() -> None:
    kept = StartingWeights(layers_of(Model(1000)))
    kept.keep()
    assert sum(sample.nbytes for _, sample in kept.state_dict().values()) < 90_000


def test_only_what_trains_is_measured_again() -> None:
    module = Model(10)
    kept = StartingWeights(layers_of(module))
    kept.keep()
    module.low.requires_grad_(False)
    with torch.no_grad():
        module.low.weight += 1
        module.top.weight += 1
    low, top = kept.distances([0.0, 0.0])
    assert low == 0.0
    assert top is not None and top > 1
    found = kept.distances()
    assert found[0] is not None and found[0] > 1


def test_a_layer_that_starts_at_zero() -> None:
    module = Model(10)
    nn.init.zeros_(module.top.weight)
    nn.init.zeros_(module.top.bias)
    kept = StartingWeights(layers_of(module))
    kept.keep()
    nn.init.constant_(module.top.weight, 0.5)
    assert kept.distances()[1] == pytest.approx(0.5 * 20**0.5)


def test_parameters_without_floats_or_values_are_left_out() -> None:
    module = Model(10)
    module.low.weight = nn.Parameter(torch.zeros(10, 10, dtype=torch.uint8), requires_grad=False)
    module.low.bias = nn.Parameter(torch.zeros(10, device="meta"))
    kept = StartingWeights(layers_of(module))
    kept.keep()
    assert kept.distances() == [None, 0.0]
