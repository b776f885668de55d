"""Models so small that reading them back may take as long as computing them, and a project to run commands in."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from reviews import make_reviews, save_csv


@pytest.fixture(autouse=True)
def always_worth_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_freeze.cache.prefix.break_even.SLOWER", 1e9)


@pytest.fixture(autouse=True)
def figures_of_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each fit writes a report, whose figures take far longer than the fit: they are left out."""
    monkeypatch.setattr("lightning_freeze.run_report.page.figures.svg_of", lambda *_: "<svg></svg>")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_bert_dir: Path) -> Path:
    """Run in an empty folder that holds reviews.csv and the model folder ``tiny``, as a user would."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning-freeze"])
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    Path("tiny").symlink_to(tiny_bert_dir)
    save_csv(Path("reviews.csv"), make_reviews())
    return tmp_path
