from __future__ import annotations

import pytest
import torch

from lightning_freeze.advice.measures.bootstrap import paired_difference


def test_equal_plans_differ_by_nothing() -> None:
    scores = (torch.rand(3, 50, generator=torch.Generator().manual_seed(0)) > 0.5).double()
    found = paired_difference(scores, scores)
    assert (found.mean, found.low, found.high, found.positive) == (0.0, 0.0, 0.0, 1.0)


def test_the_interval_of_one_seed_is_that_of_the_normal_distribution() -> None:
    """For many examples, 1.645 standard errors on either side hold 90%."""
    random = torch.Generator().manual_seed(1)
    differences = torch.randn(1, 400, generator=random, dtype=torch.float64) + 0.1
    found = paired_difference(differences, torch.zeros_like(differences))
    error = float(differences.std() / 20)
    assert found.mean == pytest.approx(float(differences.mean()))
    assert found.high - found.low == pytest.approx(2 * 1.645 * error, rel=0.1)


def test_a_spread_over_seeds_widens_the_interval() -> None:
    same = torch.full((4, 30), 0.1)
    apart = same + torch.tensor([[-0.3], [0.3], [-0.3], [0.3]])
    assert paired_difference(same, torch.zeros(4, 30)).low == pytest.approx(0.1)
    wide = paired_difference(apart, torch.zeros(4, 30))
    assert wide.low < 0 < wide.high
    assert wide.positive < 1


def test_wrong_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\), \(2, 4\): expected twice the same"):
        paired_difference(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="level=1"):
        paired_difference(torch.zeros(2, 3), torch.zeros(2, 3), level=1)
