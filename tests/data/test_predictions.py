"""The file of predictions: complete or not there, and never through a link."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_freeze.data.encoding import Columns
from lightning_freeze.data.predictions import prediction_rows, write_predictions
from lightning_freeze.data.reading.table import Table
from lightning_freeze.errors import ConfigurationError
from lightning_freeze.module.tasks import get_task


def test_the_file_has_its_name_and_the_usual_permissions(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        path = write_predictions(tmp_path / "new", "predictions", [{"line": 2, "prediction": "pos"}])
    finally:
        os.umask(before)
    assert path == tmp_path / "new" / "predictions.csv"
    assert path.read_text().splitlines() == ["line,prediction", "2,pos"]
    assert path.stat().st_mode & 0o777 == 0o644
    assert [file.name for file in path.parent.iterdir()] == ["predictions.csv"]


def test_a_planted_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    folder = tmp_path / "shared"
    folder.mkdir()
    for name in ("predictions.csv", "predictions.csv.part", ".predictions.csv.part", "predictions.part"):
        (folder / name).symlink_to(victim)
    path = write_predictions(folder, "predictions", [{"prediction": "pos"}])
    assert victim.read_text() == "precious"
    assert not path.is_symlink() and "pos" in path.read_text()


def test_a_failure_leaves_no_half_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        write_predictions(tmp_path, "predictions", [{"a": 1}, {"b": 2}])
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"predictions cannot be written to .*predictions\.csv"):
        write_predictions(tmp_path / "file" / "below", "predictions", [{"a": 1}])


@pytest.mark.parametrize(
    ("text", "written"), [(b"caf\xc3\xa9", "caf\u00e9"), (7, "7"), (["good", b"film", 7], ["good", "film", "7"])]
)
def test_texts_of_all_types_are_written(tmp_path: Path, text: Any, written: Any) -> None:
    table = Table("a.parquet", ("text",), [{"text": text}], [1], "row")
    output = {"labels": [["x"]], "predictions": torch.zeros(1, 1), "index": torch.tensor([0])}
    records = prediction_rows(table, get_task("classification"), Columns("text", None, ("label",)), [output])
    path = write_predictions(tmp_path, "predictions", records)
    assert json.loads(path.read_text()) == {"row": 1, "text": written, "prediction": ["x"]}
