from __future__ import annotations

import json
import math
import time
from pathlib import Path

import pytest
from run_report.page.histories import facts, history
from run_report.reading import CHARTS, Page

from lightning_freeze.run_report.history.history import History
from lightning_freeze.run_report.page.figures import Figures
from lightning_freeze.run_report.page.page import report_page

BERT = ["embeddings", *map(str, range(12)), "head"]


def read(text: str, folder: Path) -> Page:
    (folder / "page.html").write_text(text, encoding="utf-8")
    return Page(folder / "page.html")


def test_names_and_texts_are_text(tmp_path: Path) -> None:
    odd = [
        "<script>alert(1)</script>",
        "a&b",
        "$x$ $\\frac",
        "tab\tand\nline\x00",
        "</pre></svg>",
        "名前 🧊",
        "x" * 5000,
    ]
    run = history(odd, 3)
    run.add_warning(3, "<img src=x onerror=alert(2)>")
    run.phases[1].cause = "<script>alert(3)</script>"
    run.validations.records[0].metrics["<i>val</i>"] = 1.0
    text = report_page(run, facts(module="<script>alert(4)</script>", cache=("<script>alert(5)</script>: off",)))
    page = read(text, tmp_path)
    assert "<script" not in text
    assert "<img" not in text
    assert "<i>" not in text
    for number in (1, 3, 4, 5):
        assert f"<script>alert({number})</script>" in page.text
    assert "$x$ $\\frac" in page.text
    assert page.data["layers"][:3] == odd[:3]


@pytest.mark.slow
@pytest.mark.parametrize(("count", "phases"), [(1, 1), (2, 14), (14, 90), (129, 90), (700, 90)])
def test_pages_of_runs_of_all_sizes_stay_small(count: int, phases: int, tmp_path: Path) -> None:
    names = [f"encoder.{index}" for index in range(count)]
    text = report_page(history(names, phases, steps=4000, every=2), facts())
    assert len(text.encode()) < 1_500_000
    page = read(text, tmp_path)
    assert {*CHARTS, "cache"} == set(page.charts)
    assert ("not shown" in page.text) == (count > 160)
    if phases > 48:
        assert "What trains changed 42 more times; all of that is shown as phase 48." in page.text


def test_a_page_of_an_empty_history(tmp_path: Path) -> None:
    page = read(report_page(History(BERT, [1] * 14), facts(hit_rate=None, cache=())), tmp_path)
    assert page.charts == []
    assert "No training batch has been measured yet." in page.text


@pytest.mark.slow
def test_numbers_that_are_not_finite(tmp_path: Path) -> None:
    run = history(BERT, 2)
    for sample in run.samples:
        sample.gradients = [math.inf, math.nan, *sample.gradients[2:]]
        sample.distances = [math.nan] * 14
        sample.loss = math.nan
    run.distances = [math.nan] * 14
    page = read(report_page(run, facts()), tmp_path)
    assert "inf" in page.tables["gradients"][1]
    assert page.data["samples"]["records"][0]["gradients"][0] is None
    json.dumps(page.data, allow_nan=False)


@pytest.mark.slow
def test_a_metric_of_which_higher_values_are_better(tmp_path: Path) -> None:
    run = history(BERT, 2)
    run.validations.records.clear()
    run.best.clear()
    from lightning_freeze.run_report.history.records import Validation

    for step, value in ((10, 0.5), (20, 0.9), (30, 0.7)):
        run.add_validation(Validation(step, 0, 1, {"val_acc": value}), {"val_acc": "max"})
    page = read(report_page(run, facts()), tmp_path)
    assert "val_acc went from 0.5 to 0.9 at best (step 20, phase 1), and ended at 0.7." in page.text


@pytest.mark.slow
def test_figures_are_drawn_again_when_that_is_cheap_and_at_the_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    figures, run = Figures(), history(BERT, 2)
    first = report_page(run, facts(), None, figures, is_last=False)
    run.phases[-1].end += 10
    second = read(report_page(run, facts(), None, figures, is_last=False), tmp_path)
    assert "The figures show the run up to step 600; the numbers are up to date." in second.text
    assert "up to step" not in first
    last = report_page(run, facts(), None, figures, is_last=True)
    assert "The figures show the run" not in last
    monkeypatch.setattr("lightning_freeze.run_report.page.figures.monotonic", lambda: time.monotonic() + 1000)
    run.phases[-1].end += 10
    assert "The figures show the run" not in report_page(run, facts(), None, figures, is_last=False)
