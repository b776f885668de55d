"""The plan beside real runs: what a step keeps to the byte, and how long it takes."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks.plan_accuracy import compared
from benchmarks.saved_results import Figure
from benchmarks.speedtest.subjects import QUICK


def test_a_plan_is_compared_with_a_run() -> None:
    table = compared(replace(QUICK["bert-75"](), batches=2, epochs=2), rounds=1)
    ratios = {name: row["planned / measured"] for name, row in table.rows.items()}
    assert len(ratios) == 8
    for name, ratio in ratios.items():
        assert isinstance(ratio, Figure)
        if name.endswith("MiB"):
            assert ratio.median == pytest.approx(1, abs=1e-3), name
        else:
            assert ratio.median > 0, name
