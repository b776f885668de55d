"""A module that is sharded over two processes trains as it would in one, through all phases."""

import pytest
from distributed_cases import EVERYWHERE
from distributed_processes import (
    are_identical,
    assert_resumed_runs_are_straight,
    largest_difference,
    load,
    run_script,
)
from fsdp2_script import LATE, SHARDED_ONLY, TENSOR_PARALLEL
from resume_script import CHECKPOINTS, SCHEDULES

from lightning_freeze.strategies.signal_to_noise import signal_to_noise


@pytest.mark.slow
def test_sharded_equals_whole(tmp_path):
    cases = {**EVERYWHERE, **TENSOR_PARALLEL}
    run_script("fsdp2_script.py", tmp_path, *cases)
    for name, case in cases.items():
        alone, *ranks = (load(tmp_path, name, who) for who in ("alone", 0, 1))
        assert are_identical(ranks[0]["weights"], ranks[1]["weights"]), name
        assert largest_difference(ranks[0]["weights"], alone["weights"]) < 1e-12, name
        assert ranks[0]["trained"] == ranks[1]["trained"] == alone["trained"], name
        assert len(alone["trained"]) == case.phases, name
    static = load(tmp_path, "static", 0)
    still = {name for name in static["weights"] if static["weights"][name].equal(static["begun"][name])}
    assert still == set(static["weights"]) - set(static["trained"][0]) != set()


@pytest.mark.slow
def test_modules_without_storage_and_mixed_precision(tmp_path):
    run_script("fsdp2_script.py", tmp_path, *SHARDED_ONLY)
    for name, case in SHARDED_ONLY.items():
        ranks = [load(tmp_path, name, rank) for rank in (0, 1)]
        assert are_identical(ranks[0]["weights"], ranks[1]["weights"]), name
        assert [len(trained) for trained in ranks[0]["trained"]] == [2, 10, 18, 19] and case.phases == 4, name
        moved = {key for key, tensor in ranks[0]["weights"].items() if not tensor.equal(ranks[0]["begun"][key])}
        assert moved == set(ranks[0]["weights"]), name


@pytest.mark.slow
def test_weights_that_come_late_are_compared(tmp_path):
    run_script("fsdp2_script.py", tmp_path, *LATE)
    ranks = [load(tmp_path, "spectrum on meta", rank) for rank in (0, 1)]
    assert are_identical(ranks[0]["weights"], ranks[1]["weights"])
    matrices = {name: ranks[0]["begun"][name] for name in ranks[0]["begun"] if name.endswith("linear.weight")}
    best = sorted(matrices, key=lambda name: signal_to_noise(matrices[name]), reverse=True)[:2]
    (trained,) = ranks[0]["trained"]
    assert {name for name in trained if name in matrices} == set(best)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "schedule"),
    [*(("sharded", schedule) for schedule in SCHEDULES), ("full", "phases"), ("full", "autofreeze")],
)
def test_a_resumed_run_equals_the_straight_one(kind, schedule, tmp_path):
    run_script("resume_script.py", tmp_path, kind, schedule)
    assert_resumed_runs_are_straight(tmp_path, CHECKPOINTS)
