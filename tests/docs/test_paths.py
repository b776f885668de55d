"""The files and tests that the pages name exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMES = ("README.md", "CONTRIBUTING.md", "docs/**/*.md", "benchmarks/README.md", "benchmarks/results/*.md")
PAGES = [page for name in (*NAMES, "experiments/*/README.md") for page in sorted(ROOT.glob(name))]


def test_pages_were_found() -> None:
    assert len(PAGES) > 8


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_named_in_a_page_exist(page: Path) -> None:
    named = re.findall(r"`((?:[\w.-]+/)+[\w-]+\.(?:py|md|yaml|patch))`", page.read_text(encoding="utf-8"))
    places = (ROOT, ROOT / "lightning_freeze", ROOT / "lightning_freeze" / "cache", page.parent)
    missing = [name for name in named if not any((place / name).exists() for place in places)]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert not [link for link in links if not (page.parent / link).exists()]
