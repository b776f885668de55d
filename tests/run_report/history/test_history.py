from __future__ import annotations

from pathlib import Path

import pytest
import torch
from run_report.page.histories import history

from lightning_freeze.run_report.history.history import History
from lightning_freeze.run_report.history.series import ThinnedSeries

LAYERS = ["embeddings", *map(str, range(12)), "head"]


def test_a_checkpoint_holds_all_of_it(tmp_path: Path) -> None:
    run = history(LAYERS, 5)
    run.add_warning(3, "odd data")
    torch.save(run.state_dict(), tmp_path / "state.pt")
    again = History.from_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert again.state_dict() == run.state_dict()


def test_a_state_of_another_version_is_refused() -> None:
    with pytest.raises(ValueError, match="version 99"):
        History.from_state_dict({**history(LAYERS, 2).state_dict(), "version": 99})


def test_its_size_is_bounded() -> None:
    long, longer = (history(LAYERS, 5, steps=steps, every=1) for steps in (4_000, 40_000))
    assert len(long.samples) <= 400
    assert len(longer.samples) <= 400
    assert len(longer.validations) <= 400
    assert [phase.step for phase in longer.phases] == [0, 8_000, 16_000, 24_000, 32_000]
    starts = [sample.step for sample in longer.samples if sample.starts_phase]
    assert starts == [0, 8_000, 16_000, 24_000, 32_000]


def test_warnings_are_counted() -> None:
    run = History(["head"], [1])
    for number in range(100):
        run.add_warning(number, f"warning {number % 60}")
    assert len(run.warnings) == 40
    assert run.warnings[0].times == 2
    assert run.other_warnings == 20


def test_a_thinned_series_is_spread_evenly() -> None:
    series: ThinnedSeries[int] = ThinnedSeries(10)
    for number in range(1000):
        series.add(number)
    distances = {b - a for a, b in zip(series.records, series.records[1:], strict=False)}
    assert distances == {128}
    assert series.records[0] == 0
