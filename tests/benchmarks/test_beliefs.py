"""What the page about beliefs says of freezing itself, where no pre-trained model is needed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import beliefs


def test_a_gradient_of_zero_moves_weights_and_freezing_does_not() -> None:
    table = beliefs.zeroed_gradients()
    moved = {name: [float(str(cell)) for cell in cells.values()] for name, cells in table.rows.items()}
    assert all(value > 1e-4 for value in moved["gradients set to zero"])
    assert moved["requires_grad=False"] == [0.0, 0.0]


@pytest.mark.filterwarnings("ignore:Found .* module.* in eval mode")
def test_batch_norm_moves_with_requires_grad_alone_and_not_with_the_callback() -> None:
    table = beliefs.batch_norm()
    assert all(value > 0.1 for value in table.rows["requires_grad=False alone"].values())
    assert all(value == 0 for value in table.rows["LayerFreezing"].values())
