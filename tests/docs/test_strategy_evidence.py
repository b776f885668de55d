"""The page of each strategy says what it reached in the comparison of all strategies, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = ROOT / "experiments" / "strategies" / "README.md"
PAGES = sorted((ROOT / "docs" / "strategies").glob("*.md"))
SETS = {"Product reviews": "product reviews", "Film reviews": "film reviews", "News": "news"}


def table(section: str) -> dict[str, list[str]]:
    """The rows of a section of the README, which another test compares with results.csv."""
    (text,) = re.findall(rf"^### {section}$(.*?)end of results", README.read_text(encoding="utf-8"), re.DOTALL | re.M)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return {row[0]: row for row in rows[2:]}


def means(tables: dict[str, dict[str, list[str]]], plan: str) -> list[str]:
    return [rows[plan][1].split()[0] for rows in tables.values()]


def evidence(plan: str) -> str:
    """What the page of a strategy must say."""
    tables = {name: table(section) for section, name in SETS.items()}
    product, film, news = means(tables, plan)
    full = "{}, {} and {}".format(*means(tables, "full"))
    less = [name for name, rows in tables.items() if _p(rows[plan][3]) < 0.05]
    assert all(rows[plan][2].startswith("-") for name, rows in tables.items() if name in less)
    verdict = {
        0: "None of the differences exceeds the spread of the seeds.",
        3: "All three are less, beyond the spread of the seeds.",
    }.get(len(less), f"It is less on {' and '.join(less)}, beyond the spread of the seeds.")
    return (
        "**Evidence.** MiniLM, 600 labelled texts, at most 57 steps, no tuning, five seeds "
        f"([`strategies`](../../experiments/strategies/README.md)): an accuracy of {product} on product reviews, {film} on film "
        f"reviews and {news} on news. Full fine-tuning has {full}. {verdict}"
    )


def _p(text: str) -> float:
    return float(text.lstrip("< "))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_page_says_what_was_measured(page: Path) -> None:
    assert evidence(page.stem) in " ".join(page.read_text(encoding="utf-8").split())


def test_strategies_differ_in_what_was_measured() -> None:
    assert len({evidence(page.stem) for page in PAGES}) == len(PAGES) == 14
