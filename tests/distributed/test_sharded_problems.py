"""A problem of one rank of a sharded run: the ranks stay together, and the reason that is told is the true one."""

import pytest
import torch
from distributed_processes import are_identical, load, run_script


@pytest.fixture
def fits(tmp_path):
    """Return a function that runs a case, and returns what each rank has done with the cache."""

    def fit(name):
        run_script("sharded_problems_script.py", tmp_path, name)
        ranks = [load(tmp_path, f"{name} with", rank) for rank in (0, 1)]
        for rank, run in enumerate(ranks):
            plain = load(tmp_path, f"{name} without", rank)
            assert are_identical(run["weights"], plain["weights"])
            assert len(run["losses"]) == len(plain["losses"]) > 0
            assert all(map(torch.equal, run["losses"], plain["losses"]))
        return ranks

    return fit


def outcomes(run):
    return [decision.partition(":")[0] for decision in run["decisions"]]


@pytest.mark.slow
def test_the_reason_of_the_rank_that_cannot_use_its_hidden_states_is_told(fits):
    first, second = fits("drops layers")
    assert outcomes(first)[1:] == outcomes(second)[1:] == ["switch off"] * 15
    (warning,) = first["warnings"]
    assert "dropped at random (layerdrop)" in warning
