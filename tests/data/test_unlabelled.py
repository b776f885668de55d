"""Rows without a label are left out, and one line says so; -1 that is a class stays one."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_models import make_tokenizer

from lightning_freeze.data import Table, TextDataModule
from lightning_freeze.data.unlabelled import LabelColumns, without_unlabelled
from lightning_freeze.errors import ConfigurationError

Write = Callable[[str, str], Path]


def table(name: str, *labels: Any, classes: bool = False) -> Table:
    rows = [{"label": label} for label in labels]
    return Table(name, ("label",), rows, range(1, len(rows) + 1), "row", frozenset(["label"] if classes else []))


def kept(
    train: tuple[Any, ...], test: tuple[Any, ...] = (), target: Any = "class", names: Any = None, **options: Any
) -> dict[str, list[Any]]:
    tables = {"train": table("train", *train, **options)} | ({"test": table("test", *test, **options)} if test else {})
    result = without_unlabelled(tables, LabelColumns(target, ("label",), names))
    return {name: [row["label"] for row in part.rows] for name, part in result.items()}


@pytest.mark.parametrize(
    ("train", "test", "expected"),
    [
        ((0, 1, 0), (-1, -1), {"train": [0, 1, 0]}),  # hidden test labels
        (("0", "1", "0"), ("-1", "1"), {"train": ["0", "1", "0"], "test": ["1"]}),
        ((0, 1, 2, -1), (-1, 2), {"train": [0, 1, 2], "test": [2]}),  # no agreement on the label
        (("a", "b", -1.0), (), {"train": ["a", "b"]}),
        ((-1, 0, 1), (-1, 0), {"train": [-1, 0, 1], "test": [-1, 0]}),  # polarity
        ((-1, 1), (-1,), {"train": [-1, 1], "test": [-1]}),
        ((-2, -1, 0, 1, 2), (-1,), {"train": [-2, -1, 0, 1, 2], "test": [-1]}),
    ],
)
def test_when_minus_one_is_a_class(train: Any, test: Any, expected: Any) -> None:
    assert kept(train, test) == expected


def test_declared_classes_and_given_names_decide() -> None:
    assert kept((0, 1, -1), classes=True) == {"train": [0, 1]}
    assert kept((0, 1, 2, -1), names=["-1", "0", "1", "2"]) == {"train": [0, 1, 2, -1]}
    assert kept((0, 1, -1), (-1,), names=["0", "1"]) == {"train": [0, 1]}


def test_regression_and_tags() -> None:
    assert kept((0.5, 4.0), (-1.0, -1.0), "value") == {"train": [0.5, 4.0]}
    assert kept((0.5, -1.0), (-1.0, -1.0), "value")["test"] == [-1.0, -1.0]
    assert kept((["a", "b"],), ([-1, -1], ["a", "a"]), "token", classes=True)["test"] == [["a", "a"]]
    assert kept(([-1, 0], [-1]), target="token") == {"train": [[-1, 0], [-1]]}
    assert kept(([-1, 0, 1], [-1]), target="token") == {"train": [[-1, 0, 1]]}


def test_training_rows_without_any_label_are_an_error() -> None:
    with pytest.raises(ConfigurationError, match=r"train: all of 2 rows have no label .* expected labelled rows"):
        kept((-1, -1), classes=True)


def test_multilabel_rows_that_are_not_scored(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    train = write("train.csv", "text,toxic,nice\ngood,1,0\nbad,0.0,1.0\ngood,-1,-1\n")
    test = write("test.csv", "text,toxic,nice\ngood,-1.0,-1.0\nbad,0,1\n")
    data = TextDataModule(
        make_tokenizer(), "multilabel", train=str(train), test=str(test), label=["toxic", "nice"], batch_size=9
    )
    with caplog.at_level(logging.INFO):
        data.setup("fit")
    assert [len(data.tables[name]) for name in ("train", "test")] == [2, 1]
    assert caplog.text.count("1 of 3 rows have no label ('toxic' is -1) and are left out of 'train'") == 1
    assert caplog.text.count("1 of 2 rows have no label ('toxic' is -1) and are left out of 'test'") == 1
    half = write("half.csv", "text,toxic,nice\ngood,1,0\nbad,-1,1\n")
    with pytest.raises(ConfigurationError, match=r"half\.csv, line 3: 'toxic' is '-1', expected 0 or 1"):
        TextDataModule(make_tokenizer(), "multilabel", train=str(half), label=["toxic", "nice"]).setup("fit")


def test_one_file_is_split_without_its_unlabelled_rows(write: Write) -> None:
    rows = [{"text": "good", "label": i % 4 - 1} for i in range(40)]
    data = TextDataModule(make_tokenizer(), data=str(write("a.jsonl", "\n".join(map(json.dumps, rows)))))
    assert sum(len(part) for part in data.tables.values()) == 30
    assert data.labels == ["0", "1", "2"]


def saved(folder: Path, **splits: list[int]) -> str:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["negative", "positive"])}
    )
    parts = {
        name: datasets.Dataset.from_dict({"text": ["good film"] * len(labels), "label": labels}, features=features)
        for name, labels in splits.items()
    }
    datasets.DatasetDict(parts).save_to_disk(str(folder / "saved"))
    return str(folder / "saved")


def test_hidden_test_labels_of_a_saved_dataset(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = saved(tmp_path, train=[0, 1, -1, 1], validation=[1, 0], test=[-1, -1])
    data = TextDataModule(make_tokenizer(), data=folder)
    with caplog.at_level(logging.INFO):
        data.setup("fit")
    assert data.labels == ["negative", "positive"]
    assert [len(data.encoded[name]) for name in ("train", "val")] == [3, 2]
    assert "split 'test': all of 2 rows have no label ('label' is -1): there is no 'test' split" in caplog.text
    with pytest.raises(ConfigurationError, match="no rows for 'test'"):
        data.setup("test")
    predicting = TextDataModule(make_tokenizer(), predict=folder, labels=["negative", "positive"])
    predicting.setup("predict")
    assert len(predicting.encoded["predict"]) == 2


def test_a_class_that_is_not_declared_is_named_with_its_row(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    feature = {"info": {"features": {"label": {"names": ["neg", "pos"], "_type": "ClassLabel"}}}}
    schema = pyarrow.schema(
        [("text", pyarrow.string()), ("label", pyarrow.int64())], metadata={"huggingface": json.dumps(feature)}
    )
    for labels, expected in (
        ([0, 1, -1, 1], None),
        ([0, 1, 2, 1], r"a\.parquet, row 3: 'label' is 2, expected a class"),
    ):
        content = pyarrow.table({"text": ["good"] * 4, "label": labels}, schema=schema)
        parquet.write_table(content, tmp_path / "a.parquet")
        data = TextDataModule(make_tokenizer(), train=str(tmp_path / "a.parquet"))
        if expected is None:
            assert data.labels == ["neg", "pos"] and len(data.tables["train"]) == 3
        else:
            with pytest.raises(ConfigurationError, match=expected):
                _ = data.tables
