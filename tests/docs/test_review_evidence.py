"""Pages that cite the comparison of `experiments/reviews` have its numbers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "experiments" / "reviews" / "README.md").read_text(encoding="utf-8")
PAGES = [*sorted((ROOT / "docs" / "callbacks").glob("*.md")), ROOT / "docs" / "guides" / "beliefs.md"]
MEAN_AND_SPREAD = re.compile(r"\d\.\d{3} ± \d\.\d{3}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_means_stand_in_the_table(page: Path) -> None:
    assert set(MEAN_AND_SPREAD.findall(page.read_text(encoding="utf-8"))) <= set(MEAN_AND_SPREAD.findall(README))


def test_most_pages_of_callbacks_cite_the_table() -> None:
    assert sum(bool(MEAN_AND_SPREAD.search(page.read_text(encoding="utf-8"))) for page in PAGES) >= 6


def test_the_printed_comparison_is_the_table_with_another_digit() -> None:
    printed = (ROOT / "docs" / "compare.md").read_text(encoding="utf-8").split("Comparison\n")[1].split("```")[0]
    rows = {
        words[0]: words for line in printed.splitlines() if re.search(r"\d\.\d{4} ± ", line) and (words := line.split())
    }
    table = {
        row.split("|")[1].strip(): found[0] for row in README.splitlines() if (found := MEAN_AND_SPREAD.findall(row))
    }
    assert rows.keys() == table.keys()
    for plan, (_, mean, _, spread, *_) in rows.items():
        expected = [float(number) for number in table[plan].split(" ± ")]
        assert [float(mean), float(spread)] == pytest.approx(expected, abs=0.00051)
