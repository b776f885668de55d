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
    where = "all three" if len(less) == len(tables) else " and ".join(less)
    verdict = f"behind it on {where} beyond the spread of the seeds" if less else "not separated from it by the seeds"
    return (
        "**Evidence.** MiniLM, 600 labelled texts, at most 57 steps, five seeds, with the settings of "
        f"[`{plan}.yaml`](../../experiments/strategies/{plan}.yaml): an accuracy of {product} on product reviews, "
        f"{film} on film reviews and {news} on news. Full fine-tuning has {full}; the strategy is {verdict} "
        "([all strategies](../../experiments/strategies/README.md))."
    )


def _p(text: str) -> float:
    return float(text.lstrip("< "))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_page_says_what_was_measured(page: Path) -> None:
    assert evidence(page.stem) in " ".join(page.read_text(encoding="utf-8").split())


def test_strategies_differ_in_what_was_measured() -> None:
    assert len({evidence(page.stem) for page in PAGES}) == len(PAGES) == 14
