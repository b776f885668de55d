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
def test_nan_of_the_model_on_one_rank_switches_nothing_off(fits):
    first, second = fits("own nan")
    usual = ["run and compare", *["run and store"] * 3, *["skip"] * 12]
    usual[9] = "run and compare"
    assert outcomes(first) == outcomes(second) == usual
    assert "another rank" in first["decisions"][9] and "the model's own" in second["decisions"][9]
    assert not first["warnings"] and not second["warnings"]


@pytest.mark.slow
def test_an_error_of_one_rank_is_told_by_its_own_reason(fits):
    first, second = fits("unreadable")
    assert outcomes(first)[10:] == outcomes(second)[10:] == ["switch off"] * 6
    (warning,) = first["warnings"]
    assert "as a worn disk may" in warning


@pytest.mark.slow
def test_a_rank_with_a_problem_reads_weights_of_the_new_phase_with_the_others(fits):
    first, second = fits("slow before a phase")
    assert "skip" in outcomes(first)[:8] and "switch off" not in outcomes(first)[:8]
    assert first["decisions"][8:] == second["decisions"][8:] == ["switch off: reading takes longer than computing"] * 8


@pytest.mark.slow
def test_the_reason_of_the_rank_that_cannot_use_its_hidden_states_is_told(fits):
    first, second = fits("drops layers")
    assert outcomes(first)[1:] == outcomes(second)[1:] == ["switch off"] * 15
    (warning,) = first["warnings"]
    assert "dropped at random (layerdrop)" in warning


@pytest.mark.slow
def test_a_weight_of_a_tensor_parallel_module_that_is_replaced_is_noticed(fits):
    first, second = fits("replaced")
    assert outcomes(first) == outcomes(second)
    assert "were replaced" in first["decisions"][8] and outcomes(first)[-1] == "skip"
