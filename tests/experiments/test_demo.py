from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_demo_ends_with_the_path_of_its_report() -> None:
    printed = subprocess.run(["make", "-n", "demo"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    last = printed.strip().splitlines()[-1]
    assert last == f'echo "Report: {ROOT}/runs/reviews/demo/freeze_report.html"'
