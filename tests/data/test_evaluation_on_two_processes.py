"""Evaluation on two processes gives the result of one process: every row counts once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_each_row_counts_once_on_two_processes(tmp_path: Path) -> None:
    ranks = ("LOCAL_RANK", "RANK", "NODE_RANK", "WORLD_SIZE")
    environment = {name: value for name, value in os.environ.items() if name not in ranks}
    tests = Path(__file__).parents[1]
    paths = [str(tests), str(tests / "distributed"), str(tests.parent), environment.get("PYTHONPATH", "")]
    environment.update(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="", PYTHONPATH=os.pathsep.join(paths))
    script = Path(__file__).with_name("evaluation_script.py")
    command = [sys.executable, str(script), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]
    alone, first, second = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("alone", 0, 1))
    for one, *both in zip(alone, first, second, strict=True):
        case = one.pop("case")
        assert [result.pop("case") for result in both] == [case, case]
        predictions = one.pop("predictions")
        fitted = [result.pop("fitted", None) for result in (one, *both)]
        assert fitted[1] == fitted[2], case  # on one device the training step had half the rows
        if case[1] == 1:  # fewer rows than processes
            assert all("1 rows for 2 processes" in result.pop("error") for result in both)
        else:
            shares = [result.pop("predictions") for result in both]
            assert not shares[0].keys() & shares[1].keys(), case
            numbers = case[0] == "regression"
            assert {**shares[0], **shares[1]} == (pytest.approx(predictions) if numbers else predictions), case
        for result in both:
            # The correlation of seven almost equal outputs is inexact in 32 bits.
            tolerance = 1e-3 if case[0] == "regression" else 1e-5
            assert result == pytest.approx(one, rel=tolerance, nan_ok=True), case
