"""Ranks that are processes of their own, as in production: forked ones share more than they should."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from distributed_processes import run_script


@pytest.mark.slow
def test_a_later_run_finds_what_all_ranks_have_stored(tmp_path: Path) -> None:
    """Samples are shuffled over the ranks, so that each needs what the other one has stored."""
    outputs = [run_script("launched_ranks_script.py", tmp_path / "cache") for _ in range(2)]
    rates = [sorted(re.findall(r"rank (\d): (\d\.\d\d) (\{.*\})", output)) for output in outputs]
    assert rates == [[("0", "0.00", "{}"), ("1", "0.00", "{}")], [("0", "0.75", "{}"), ("1", "0.75", "{}")]]
