"""Ranks that are processes of their own, as in production: forked ones share more than they should."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("launched_ranks_script.py")


@pytest.mark.slow
def test_a_later_run_finds_what_all_ranks_have_stored(tmp_path: Path) -> None:
    """Samples are shuffled over the ranks, so that each needs what the other one has stored."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    rates = []
    for _ in range(2):
        command = [sys.executable, str(SCRIPT), str(tmp_path / "cache")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        rates.append(sorted(re.findall(r"rank (\d): (\d\.\d\d) (\{.*\})", done.stdout)))
    assert rates == [[("0", "0.00", "{}"), ("1", "0.00", "{}")], [("0", "0.75", "{}"), ("1", "0.75", "{}")]]
