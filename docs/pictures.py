"""Draws the pictures of the README and the site: `make docs-pictures`.

    python docs/pictures.py

- ``docs/pictures/timeline.svg``: the timeline in the report of ``make demo``, which must have been run.
- ``docs/pictures/speed.svg``: the chart of the table "What was measured" in docs/performance.md.
"""

from __future__ import annotations

import html
import json
import re
import sys
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from lightning_freeze.pages.style import STYLE
from lightning_freeze.pages.svg import as_svg
from lightning_freeze.run_report.facts import RunFacts
from lightning_freeze.run_report.history.history import History
from lightning_freeze.run_report.page.timeline import timeline_chart
from lightning_freeze.run_report.page.view import View

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "pictures"
PERFORMANCE = ROOT / "docs" / "performance.md"
REPORT = ROOT / "runs" / "reviews" / "demo" / "freeze_report.html"
#: Column of the table to its colour (Okabe and Ito, 2008).
SERIES = {"LayerFreezing": "#0072B2", "cache, cold": "#56B4E9", "cache, warm": "#E69F00", "ideal": "#999999"}
#: Label to the beginning of the row of the table.
ROWS = {
    "BERT-base,\n9 of 12 blocks frozen": "BERT-base, classifier, 9 of 12",
    "ViT-base,\n9 of 12": "ViT-base, 9 of 12",
    "GPT-2 Medium, classifier,\n12 of 24": "GPT-2 Medium, classifier, 12 of 24",
    "T5-Large,\n80% of the forward pass": "T5-Large, 38 of 48 blocks, 80%",
    "MiniLM,\n4 of 6, on reviews": "MiniLM, pre-trained",
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "path",
    "svg.hashsalt": "pictures",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def measured(page: str) -> dict[str, dict[str, float]]:
    """The figures of the table "What was measured": label to column to how many times as fast.

    Args:
        page: The Markdown of docs/performance.md.

    Raises:
        ValueError: The page has no such row.
    """
    table = [line.strip("|").split("|") for line in page.splitlines() if line.startswith("|")]
    header = next([cell.strip() for cell in cells] for cells in table if "cache, cold" in map(str.strip, cells))
    found: dict[str, dict[str, float]] = {}
    for label, begin in ROWS.items():
        cells = next(([cell.strip() for cell in row] for row in table if row[0].strip().startswith(begin)), None)
        if cells is None:
            raise ValueError(f"{PERFORMANCE}: expected a row that begins with {begin!r}.")
        numbers = {name: re.match(r"[\d.]+", cells[header.index(name)]) for name in SERIES}
        found[label] = {name: float(number.group()) for name, number in numbers.items() if number}
    return found


def speed_chart(rows: dict[str, dict[str, float]]) -> Figure:
    """Bars of how many times as fast as full fine-tuning each set-up is."""
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    ax = figure.subplots()
    width = 0.2
    for number, (name, colour) in enumerate(SERIES.items()):
        places = [row + (number - 1.5) * width for row, values in enumerate(rows.values()) if name in values]
        heights = [values[name] for values in rows.values() if name in values]
        label = "the limit, cut by hand" if name == "ideal" else name
        bars = ax.bar(places, heights, width=0.92 * width, color=colour, label=label)
        ax.bar_label(bars, fmt="%.2f", padding=2, fontsize=7)
    ax.axhline(1.0, color="#202020", linewidth=0.9, linestyle="--", label="full fine-tuning")
    ax.set_xticks(range(len(rows)), list(rows), fontsize=9)
    ax.set_ylabel("times as fast as full fine-tuning")
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False, ncols=5, fontsize=9)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure on a white ground, the same bytes for the same picture."""
    with rc_context(_STYLE):
        figure.savefig(path, format="svg", facecolor="white", metadata={"Date": None})
    write(path.read_text(encoding="utf-8"), path)


def write(svg: str, path: Path) -> None:
    """Write a picture as the checks of this repository expect: one newline at the end, and no line ends with blanks."""
    lines = (line.rstrip() for line in svg.splitlines())
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def timeline(report: Path) -> str:
    """The first picture of a report, on a white ground.

    Args:
        report: The page.

    Raises:
        ValueError: The page has no numbers or no picture.
    """
    numbers = re.search(r'<details id="data">.*?<pre>(.*?)</pre>', report.read_text("utf-8"), re.DOTALL)
    if numbers is None:
        raise ValueError(f"{report}: expected the numbers of the run in it.")
    history = History.from_state_dict(json.loads(html.unescape(numbers[1])))
    facts = RunFacts("", (), epoch=0, epochs=None, processes=1, written="", monitor=("val_loss",))
    chart = timeline_chart(View(history, facts))
    if chart is None:
        raise ValueError(f"{report}: expected a run in which something trained.")
    with rc_context(STYLE):
        figure = Figure(figsize=(chart.width, chart.height), layout="constrained")
        chart.draw(figure)
        svg = as_svg(figure, text="#1c1c1e", background="white")
    return svg.replace(">", '><rect width="100%" height="100%" fill="white"/>', 1)


def main() -> None:
    """Draw all pictures."""
    FOLDER.mkdir(exist_ok=True)
    with rc_context(_STYLE):
        save(speed_chart(measured(PERFORMANCE.read_text(encoding="utf-8"))), FOLDER / "speed.svg")
    write(timeline(REPORT), FOLDER / "timeline.svg")
    print(f"Drawn: {', '.join(sorted(path.name for path in FOLDER.glob('*.svg')))}", file=sys.stderr)


if __name__ == "__main__":
    main()
