"""`lightning-freeze cache fill` with the config of a fit."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from projects import FIT as PROJECT
from projects import QUIET, fails

from lightning_freeze.cli import command_line

FIT = [*PROJECT, "--data.batch_size=4"]
CONFIG = """
trainer:
  max_epochs: 6
  callbacks:
    - class_path: GradualUnfreezing
    - class_path: FrozenPrefixCache
      init_args: {cache_dir: store}
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
    - class_path: lightning.pytorch.callbacks.LearningRateMonitor
"""


@pytest.fixture
def config(project: Path) -> str:
    (project / "fill.yaml").write_text(CONFIG)
    return "--config=fill.yaml"


@pytest.mark.slow
def test_fill_then_fit(config: str, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command_line.main(["cache", "fill", config, *FIT, "--trainer.accelerator=cpu"])
    said = capsys.readouterr().out.splitlines()
    assert said[-1].startswith("Filled: ") and said[-1].endswith("in store; frozen blocks: 4, 3, 2, 1")
    assert not (project / "lightning_logs").exists()
    command_line.main(["cache", "fill", config, *FIT, "--trainer.accelerator=cpu"])
    assert "were stored already" in capsys.readouterr().out
    command_line.main(["fit", config, *FIT, *QUIET])
    (line,) = [x for x in capsys.readouterr().out.splitlines() if "samples read back" in x]
    assert int(line.partition("%")[0].rpartition("(")[2]) > 40  # the first batches of each phase are compared


def test_set_ups_that_cannot_be_filled(config: str, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "fill.yaml").write_text(CONFIG.replace("{cache_dir: store}", "{}"))
    assert "no cache_dir" in fails(capsys, "cache", "fill", config, *FIT)
    (project / "fill.yaml").write_text("trainer:\n  callbacks:\n    - class_path: GradualUnfreezing\n")
    assert "no FrozenPrefixCache" in fails(capsys, "cache", "fill", config, *FIT)
    (project / "fill.yaml").write_text(CONFIG.replace("class_path: GradualUnfreezing", "class_path: LayerFreezing"))
    message = fails(capsys, "cache", "fill", config, *FIT)
    assert "layers" in message


def test_processes_that_are_spawned_are_refused(config: str, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spawned = ["--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp_spawn"]
    assert "expected `--trainer.strategy ddp`" in fails(capsys, "cache", "fill", config, *FIT, *spawned)


@pytest.mark.slow
def test_two_processes_fill_together(config: str, project: Path) -> None:
    command = [sys.executable, "-m", "lightning_freeze.cli", "cache", "fill", config, *FIT]
    options = ["--trainer.accelerator=cpu", "--trainer.strategy=ddp", "--trainer.devices=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *options], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith("Filled: ")]
    assert len(lines) == 1
    # One process alone finds everything, but for the first batch, which it checks.
    alone = subprocess.run([*command, options[0]], env=environment, capture_output=True, text=True, timeout=120)
    assert alone.returncode == 0, alone.stderr[-3000:]
    assert "were stored already" in alone.stdout
    both, one = (int(re.search(r"Filled: (\d+) samples", text)[1]) for text in (lines[0], alone.stdout))  # type: ignore[index]
    assert one <= both <= one + 2, "the samplers of two processes may repeat a sample each"
