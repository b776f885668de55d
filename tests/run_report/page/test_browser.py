"""A report in a real browser, at the width of a phone and of a desk."""

from __future__ import annotations

from pathlib import Path

import pytest
from run_report.page.browser import browser, open_page
from run_report.page.histories import facts, history
from run_report.reading import CHARTS

from lightning_freeze.run_report.page.page import report_page

pytestmark = pytest.mark.skipif(browser() is None, reason="no Chromium or Chrome is installed")

LAYERS = ["embeddings", *map(str, range(12)), "<script>alert(1)</script>"]


@pytest.fixture(scope="module")
def page() -> str:
    return report_page(history(LAYERS, 14), facts())


@pytest.mark.fast_cases(1, "light-1400")
@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("is_dark", [False, True], ids=["light", "dark"])
def test_every_chart_is_drawn(page: str, width: int, is_dark: bool, tmp_path: Path) -> None:
    seen = open_page(page, width, tmp_path, is_dark)
    assert seen.console == []
    charts = {chart["key"]: chart for chart in seen.found["charts"]}
    assert set(charts) == {*CHARTS, "cache"}
    for chart in charts.values():
        assert chart["width"] > 300
        assert chart["height"] > 120
        assert chart["shapes"] > 10
        assert chart["rows"] > 1
        assert chart["smallest"] >= 9  # pixels, so that labels can be read
    # Only charts and tables scroll sideways, the page does not.
    assert seen.found["pageWidth"] <= width
    assert seen.found["scripts"] == 0
    assert "<script>alert(1)</script>" in seen.found["text"]
    assert any(text.startswith("<script") for text in charts["timeline"]["texts"])
    channels = [int(each) for each in seen.found["background"].strip("rgb()").split(",")]
    assert (max(channels) < 80) == is_dark


def test_the_console_is_seen(tmp_path: Path) -> None:
    seen = open_page("<p>text</p><script>undefined.missing</script>", 400, tmp_path)
    assert any("Uncaught TypeError" in line for line in seen.console)
