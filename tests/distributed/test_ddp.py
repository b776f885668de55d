"""Two processes with batch B equal one process with batch 2B, and each other, whatever the schedule and the "
"launcher."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("ddp_script.py")
SCHEDULES = ["static", "epochs", "steps", "plateau", "refreezing", "accumulation", "bucket view"]


def run(out, launcher, devices, *schedules):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, str(SCRIPT), str(out), launcher, str(devices), *schedules]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    out = tmp_path_factory.mktemp("alone")
    run(out, "none", 1, *SCHEDULES)
    return out


@pytest.fixture(scope="module")
def forked(tmp_path_factory):
    out = tmp_path_factory.mktemp("forked")
    run(out, "fork", 2, *SCHEDULES)
    return out


def assert_the_same(alone, together, schedule):
    expected = torch.load(alone / f"{schedule}-0.pt", weights_only=True)["weights"]
    ranks = [torch.load(together / f"{schedule}-{rank}.pt", weights_only=True) for rank in (0, 1)]
    for name, tensor in expected.items():
        assert torch.equal(ranks[0]["weights"][name], ranks[1]["weights"][name])
        assert (ranks[0]["weights"][name] - tensor).abs().max() < 1e-12
    return ranks[0]["communicated"]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_two_processes_equal_one(schedule, alone, forked):
    communicated = assert_the_same(alone, forked, schedule)
    # Only what trains is communicated, from the first wrap on, and every phase has its own.
    assert all(registered == trainable for registered, trainable in communicated)
    phases = {"static": 1, "epochs": 4, "steps": 6, "plateau": 2, "refreezing": 4, "accumulation": 6, "bucket view": 4}
    assert len(communicated) == phases[schedule]


@pytest.mark.parametrize("launcher", ["spawn", "popen"])
def test_every_launcher_works(launcher, alone, tmp_path):
    run(tmp_path, launcher, 2, "epochs")
    assert_the_same(alone, tmp_path, "epochs")
