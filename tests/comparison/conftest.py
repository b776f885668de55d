"""A folder with a tiny model, data and a comparison file."""

from __future__ import annotations

from pathlib import Path

import pytest
from projects_to_compare import BASE, COMPARE
from reviews import make_reviews, save_csv


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_bert_dir: Path) -> Path:
    """Run in a folder that holds reviews.csv, the model folder ``tiny``, base.yaml and compare.yaml."""
    monkeypatch.chdir(tmp_path)
    Path("tiny").symlink_to(tiny_bert_dir)
    save_csv(Path("reviews.csv"), make_reviews())
    Path("base.yaml").write_text(BASE)
    Path("compare.yaml").write_text(COMPARE)
    return tmp_path
