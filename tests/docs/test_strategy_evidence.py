"""The page of each strategy says what it reached in the comparison of all strategies, and nothing else."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest
from results import read_results
from tables import against_baseline

ROOT = Path(__file__).parents[2]
RESULTS = read_results(ROOT / "experiments" / "strategies" / "results.csv")
PAGES = sorted((ROOT / "docs" / "strategies").glob("*.md"))
SETS = {"compare_amazon": "product reviews", "compare_movie": "film reviews", "compare_reuters": "news"}


def means(plan: str) -> list[str]:
    return [f"{statistics.fmean(RESULTS.values(name, plan, 'test_accuracy').values()):.3f}" for name in SETS]


def evidence(plan: str) -> str:
    """What the page of a strategy must say."""
    product, film, news = means(plan)
    full = "{}, {} and {}".format(*means("full"))
    tests = {name: against_baseline(RESULTS, name)[plan] for name in SETS}
    separated = [SETS[name] for name, test in tests.items() if test.is_significant]
    assert all(test.difference < 0 for test in tests.values() if test.is_significant)
    where = "all three" if len(separated) == len(SETS) else " and ".join(separated)
    verdict = f"behind it on {where} beyond the spread of the seeds" if where else "not separated from it by the seeds"
    return (
        "**Evidence.** MiniLM, 600 labelled texts, at most 57 steps, five seeds, with the settings of "
        f"[`{plan}.yaml`](../../experiments/strategies/{plan}.yaml): an accuracy of {product} on product reviews, "
        f"{film} on film reviews and {news} on news. Full fine-tuning has {full}; the strategy is {verdict} "
        "([all strategies](../../experiments/strategies/README.md))."
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_page_says_what_was_measured(page: Path) -> None:
    assert evidence(page.stem) in " ".join(page.read_text(encoding="utf-8").split())


def test_strategies_differ_in_what_was_measured() -> None:
    assert len({evidence(page.stem) for page in PAGES}) == len(PAGES) == 14
