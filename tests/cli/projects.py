"""Helpers for tests of the command line: a project in an empty folder, and what a command says."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_freeze.cli import command_line

QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu"]
FIT = ["--model.encoder=./tiny", "--model.task=classification", "--data.data=reviews.csv"]


def checkpoint() -> str:
    """The checkpoint of the first run in this folder."""
    return str(next(Path("lightning_logs/version_0/checkpoints").glob("*.ckpt")))


def fails(capsys: pytest.CaptureFixture[str], *args: str, code: int = 2) -> str:
    """Run a command that ends with an exit code and one message; returns the message."""
    with pytest.raises(SystemExit) as error:
        command_line.main([*args])
    message = capsys.readouterr().err
    assert error.value.code == code, message
    assert "Traceback" not in message
    lines = [line for line in message.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, message
    return lines[0]
