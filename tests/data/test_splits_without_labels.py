"""Splits and rows without labels are left out and named, whatever marks them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from tiny_models import make_tokenizer

from lightning_freeze.data import TextDataModule
from lightning_freeze.errors import ConfigurationError

datasets = pytest.importorskip("datasets")
ROWS = [{"text": "good", "label": "a"}, {"text": "bad", "label": "b"}]


def saved(folder: Path, classes: bool = False, **splits: list[dict[str, Any]]) -> str:
    features = {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["a", "b"])} if classes else None
    made = {
        name: datasets.Dataset.from_list(rows, features=features and datasets.Features(features))
        for name, rows in splits.items()
    }
    datasets.DatasetDict(made).save_to_disk(str(folder / "data"))
    return str(folder / "data")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "good"}], "split 'test': there is no column 'label', so there is no 'test' split."),
        (
            [{"text": "good", "label": None}],
            "split 'test': all of 1 rows have no label ('label' is empty): there is no",
        ),
        ([{"text": "good", "label": ""}], "split 'test': all of 1 rows have no label ('label' is empty): there is no"),
    ],
    ids=["no column", "None", "empty"],
)
def test_a_test_split_without_labels(
    rows: list[dict[str, Any]], message: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = TextDataModule(make_tokenizer(), data=saved(tmp_path, train=ROWS, validation=ROWS, test=rows))
    with caplog.at_level(logging.INFO):
        data.setup("fit")
    assert set(data.tables) == {"train", "val"}
    assert message in caplog.text
    with pytest.raises(ConfigurationError, match="There are no rows for 'test'"):
        data.setup("test")


def test_a_wrong_label_column_is_an_error(tmp_path: Path) -> None:
    data = TextDataModule(make_tokenizer(), data=saved(tmp_path, train=ROWS, validation=ROWS), label="lable")
    with pytest.raises(ConfigurationError, match=r"has no column 'lable'.*Did you mean 'label'"):
        data.setup("fit")


def test_a_missing_class_is_no_label(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"text": "good", "label": label} for label in (0, None, 1, -1)]
    data = TextDataModule(make_tokenizer(), data=saved(tmp_path, classes=True, train=rows, validation=rows))
    with caplog.at_level(logging.INFO):
        data.setup("fit")
    assert len(data.encoded["train"]) == len(data.encoded["val"]) == 2
    assert "split 'train': 2 of 4 rows have no label ('label' is empty) and are left out of 'train'." in caplog.text


def test_a_missing_label_among_names_is_an_error(tmp_path: Path) -> None:
    rows = [*ROWS, {"text": "film", "label": None}]
    with pytest.raises(ConfigurationError, match=r"split 'validation', row 3: the label 'label' is empty"):
        TextDataModule(make_tokenizer(), data=saved(tmp_path, train=ROWS, validation=rows)).setup("fit")
