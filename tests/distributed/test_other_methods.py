"""Adapters, and a student beside its teacher, end with the same weights in two processes as in one."""

import pytest
from distributed_processes import are_identical, largest_difference, load, run_script
from other_methods_script import BATCHES, SIZE


@pytest.mark.slow
def test_two_processes_give_what_one_gives(tmp_path):
    pytest.importorskip("peft")
    run_script("other_methods_script.py", tmp_path)
    samples = BATCHES * 2 * SIZE
    for name in ("lora", "student", "shared"):
        alone = load(tmp_path, "student" if name == "shared" else name, "alone")
        ranks = [load(tmp_path, name, rank) for rank in (0, 1)]
        assert are_identical(*(rank["weights"] for rank in ranks))
        assert largest_difference(ranks[0]["weights"], alone["weights"]) < 1e-10
        assert ranks[0]["moved"] == alone["moved"]
        if name != "lora":
            assert sum(rank["seen"] for rank in ranks) == alone["seen"] == samples, "once for each sample"
    moved = load(tmp_path, "lora", 0)["moved"]
    assert all("lora_" in each or "classifier" in each for each in moved)
    assert any("layer.0." in each for each in moved)
