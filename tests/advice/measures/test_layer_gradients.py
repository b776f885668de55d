from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_freeze.advice.measures.gradients import gradients_by_layer, relative_norm


def test_a_relative_norm_is_taken_over_all_tensors_of_a_layer() -> None:
    assert relative_norm([torch.tensor([3.0]), torch.tensor([4.0])], [torch.tensor([10.0])]) == pytest.approx(0.5)
    assert relative_norm([torch.tensor([3.0])], [torch.zeros(2)]) == float("inf")
    assert relative_norm([], [torch.ones(2)]) == 0.0


def test_measured_against_gradients_worked_out_by_hand() -> None:
    """For a loss of (w x)^2 / 2 the gradient of an example is w x^2."""
    weight = nn.Parameter(torch.tensor([2.0]))
    inputs = [torch.tensor([1.0]), torch.tensor([3.0])]

    def loss_of(values: torch.Tensor) -> torch.Tensor:
        return ((weight * values) ** 2 / 2).mean()

    batch = torch.cat(inputs)
    found = gradients_by_layer({"w": [weight]}, [(lambda: loss_of(batch), [lambda x=x: loss_of(x) for x in inputs])])
    assert found["w"].relative_norm == pytest.approx((2 * 1 + 2 * 9) / 2 / 2)
    assert found["w"].fisher_trace == pytest.approx((2.0**2 + 18.0**2) / 2)
    assert weight.grad is None


def test_frozen_and_unused_parameters() -> None:
    used, frozen, unused = (nn.Parameter(torch.ones(2)) for _ in range(3))
    frozen.requires_grad_(False)
    layers = {"used": [used], "frozen": [frozen], "unused": [unused]}
    found = gradients_by_layer(layers, [(lambda: (used * frozen).sum(), [])])
    assert set(found) == {"used", "unused"}
    assert found["unused"].relative_norm == 0.0
    assert found["used"].relative_norm == pytest.approx(1.0)


def test_without_a_batch_nothing_can_be_said() -> None:
    with pytest.raises(ValueError, match="no batch"):
        gradients_by_layer({"w": [nn.Parameter(torch.ones(1))]}, [])
