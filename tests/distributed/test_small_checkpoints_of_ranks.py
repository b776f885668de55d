"""Small checkpoints in two processes: under DDP as on one device, sharded whole."""

import pytest
import torch
from distributed_processes import assert_resumed_runs_are_straight, run_script
from small_checkpoint_script import CHECKPOINTS

from lightning_freeze.checkpoints import OmittedWeight


def omitted(path):
    state = torch.load(path, weights_only=True)["state_dict"]
    return {name for name, value in state.items() if isinstance(value, OmittedWeight)}


@pytest.mark.slow
def test_a_run_under_ddp_resumes_from_small_checkpoints(tmp_path):
    run_script("small_checkpoint_script.py", tmp_path, "ddp")
    counts = [len(omitted(tmp_path / f"{name}.ckpt")) for name in CHECKPOINTS]
    assert counts[0] > counts[1] > counts[2] >= 1, counts
    assert_resumed_runs_are_straight(tmp_path, CHECKPOINTS)


@pytest.mark.slow
def test_sharded_models_save_whole_checkpoints_and_refuse_small_ones(tmp_path):
    run_script("small_checkpoint_script.py", tmp_path / "ddp", "ddp")
    for kind in ("sharded", "full"):
        small = [tmp_path / "ddp" / "steps" / "0-1.ckpt"] if kind == "full" else []
        run_script("small_checkpoint_script.py", tmp_path / kind, kind, *small)
        assert_resumed_runs_are_straight(tmp_path / kind, CHECKPOINTS)
    assert not any(omitted(tmp_path / "full" / f"{name}.ckpt") for name in CHECKPOINTS)
    for rank in (0, 1):
        error = torch.load(tmp_path / "full" / f"error-{rank}.pt")["error"]
        assert "frozen layer 'embeddings'" in error and "merge-checkpoint` writes a whole checkpoint" in error
