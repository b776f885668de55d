from __future__ import annotations

import pytest
import torch
from run_report.measures.test_distances import Model, layers_of
from torch import nn

from lightning_freeze.run_report.measures.gradients import GradientNorms


def test_sparse_half_precision_and_shared_layers() -> None:
    module = Model(10)
    layers = layers_of(module)
    norms = GradientNorms(layers)
    module.low.weight.grad = torch.ones(10, 10).to_sparse()
    module.low.bias.grad = torch.full((10,), 2.0)
    halves = [torch.optim.SGD([module.low.weight], lr=1), torch.optim.SGD([module.low.bias], lr=1)]
    norms.measure(halves[0], [module.low.weight])
    norms.measure(halves[1], [module.low.bias])
    norms.measure(halves[1], [module.low.bias])  # a second step in the same batch
    (low, top), _ = norms.read()
    assert low == pytest.approx((100 + 40) ** 0.5)
    assert top is None


def test_large_values_in_half_precision_do_not_overflow() -> None:
    module = Model(10).half()
    norms = GradientNorms(layers_of(module))
    module.top.weight.grad = torch.full((2, 10), 60_000.0, dtype=torch.float16)
    norms.measure(None, module.parameters())
    (_, top), (_, relative) = norms.read()
    assert top == pytest.approx(60_000 * 20**0.5, rel=1e-3)
    assert relative is not None and relative > 1000
    assert norms.read()[0] == [None, None]


def test_a_layer_of_zeros_has_no_relative_norm() -> None:
    module = Model(4)
    nn.init.zeros_(module.top.weight)
    norms = GradientNorms(layers_of(module))
    module.top.weight.grad = torch.ones(2, 4)
    norms.measure(None, [module.top.weight])
    assert norms.read()[1] == [None, None]
