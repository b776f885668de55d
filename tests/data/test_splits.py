"""The splits of a saved dataset are found under the names that people give them."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from tiny_models import make_tokenizer

from lightning_freeze.data import TextDataModule
from lightning_freeze.data.reading.splits import find_split
from lightning_freeze.errors import ConfigurationError


@pytest.mark.parametrize(
    ("names", "wanted", "found"),
    [
        (["train", "validation_matched", "validation_mismatched"], "val", "validation_matched"),
        (["validation_extra", "dev"], "val", "dev"),
        (["Train", "Eval"], "val", "Eval"),
        (["train_sft", "test_sft"], "train", "train_sft"),
        (["train", "test", "unsupervised"], "val", None),
        (["trainer", "validated"], "train", None),
        (["train", "test-clean"], "predict", "test-clean"),
    ],
)
def test_names(names: list[str], wanted: str, found: str | None) -> None:
    assert find_split(names, wanted) == found


def saved(folder: Path, *names: str) -> str:
    datasets = pytest.importorskip("datasets")
    part = datasets.Dataset.from_dict({"text": ["good", "bad"], "label": ["pos", "neg"]})
    datasets.DatasetDict(dict.fromkeys(names, part)).save_to_disk(str(folder / "saved"))
    return str(folder / "saved")


def lines(caplog: pytest.LogCaptureFixture, **files: str) -> tuple[TextDataModule, str]:
    data = TextDataModule(make_tokenizer(), **files)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        _ = data.tables
    return data, caplog.text


def test_one_line_says_what_is_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = saved(tmp_path, "train", "validation_matched", "validation_mismatched")
    data, said = lines(caplog, data=folder)
    assert set(data.tables) == {"train", "val"}
    assert "'train' for train, 'validation_matched' for val; not used: 'validation_mismatched'." in said
    _, said = lines(caplog, train=folder, val=folder)
    assert "the split 'validation_matched' is read for data.val" in said
    data, said = lines(caplog, train=folder, val=f"{folder}/validation_mismatched")
    assert data.tables["val"].name.endswith("validation_mismatched") and not said.count("mismatched' is read")


def test_no_validation_split_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data, said = lines(caplog, data=saved(tmp_path, "train", "unsupervised"))
    assert set(data.tables) == {"train"}
    assert "there is no validation split; not used: 'unsupervised'" in said


def test_the_usual_names_need_no_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, said = lines(caplog, data=saved(tmp_path, "train", "validation", "test"))
    assert "saved" not in said


def test_no_training_split(tmp_path: Path) -> None:
    folder = saved(tmp_path, "left", "right")
    with pytest.raises(ConfigurationError, match=r"no split for training: its splits are 'left', 'right'"):
        _ = TextDataModule(data=folder).tables
    with pytest.raises(ConfigurationError, match=r"no split for data\.val: its splits are 'left', 'right'"):
        _ = TextDataModule(val=folder).tables
