"""Where the time of gradual unfreezing goes: parts of steps are measured, and set against the count of operations."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks.gradual_profile import (
    BACKWARD,
    DATA,
    FORWARD,
    PARTS,
    STEP,
    Epoch,
    Profile,
    by_epoch,
    by_part,
    profiles,
)
from benchmarks.speedtest.subjects import QUICK


def epoch(forward: float, first: float = 0.0) -> Epoch:
    """Four batches: the first longer than the others, whose forward pass takes so long on average."""
    seconds = {DATA: 0.0, FORWARD: 1.25 * forward, BACKWARD: 2.0, STEP: 0.5}
    batches = [{**seconds, FORWARD: share * forward} for share in (1.25, 1.25, 0.5)]
    return Epoch([{**seconds, FORWARD: forward + first}, *batches], validation=forward)


def test_only_the_frozen_forward_pass_is_left_out_by_the_count() -> None:
    plain = Profile(33.0, [epoch(1.0), epoch(1.0)])  # 28 in batches, 2 in validation
    cached = Profile(33.0, [epoch(1.0, first=2.0), epoch(0.5)])  # 26, 2 more in the first batch, 1.5
    table = by_part("BERT", plain, cached, frozen=[0.9, 0.75])
    rows = {name: list(cells.values()) for name, cells in table.rows.items()}
    assert rows[FORWARD] == [8.0, 5.0, 6.0, 1.0]  # the first epoch fills
    assert rows[BACKWARD] == [16.0, 16.0, 16.0, 0.0]
    assert rows["first batches, beyond the others"] == [0.0, 0.0, 2.0, 2.0]
    assert rows["validation"] == [2.0, 1.25, 1.5, 0.25]
    assert rows["before, after and between"] == [3.0, 3.0, 3.5, 0.5]
    assert rows["in all"] == [33.0, 29.25, 33.0, 3.75]
    assert table.notes == ["1.00 times as fast with the cache; the count of each part allows 1.13"]


def test_the_epochs_are_shown_one_by_one() -> None:
    run = Profile(24.0, [epoch(1.0), epoch(0.4, first=1.5)])
    rows = by_epoch(run, run, frozen=[0.9, 0.75]).rows
    assert list(rows) == ["0", "1"]
    assert rows["1"]["frozen"] == "75%"
    assert rows["1"]["forward pass, with the cache"] == "500"
    assert rows["1"]["first batch beyond the others, GradualUnfreezing"] == "1,500"


def test_a_real_run_is_measured_without_the_turns_of_the_other(tmp_path: Path) -> None:
    subject = replace(QUICK["gradual"](), batches=4, epochs=6)
    began = time.perf_counter()
    found = profiles(subject, tmp_path)
    assert sum(profile.seconds for profile in found) < time.perf_counter() - began
    for profile in found:
        assert [len(epoch.batches) for epoch in profile.epochs] == [4] * 6
        batches = [batch for epoch in profile.epochs for batch in epoch.batches]
        assert all(batch[part] > 0 for batch in batches for part in PARTS[1:])
        assert all(epoch.validation > 0 for epoch in profile.epochs)
        in_epochs = sum(sum(batch.values()) for batch in batches) + sum(epoch.validation for epoch in profile.epochs)
        assert profile.rest() == pytest.approx(profile.seconds - in_epochs, abs=1e-3)
        assert profile.rest() > 0
