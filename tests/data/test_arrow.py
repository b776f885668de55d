"""Parquet files: what they may unpack to, and which row is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from tiny_models import make_tokenizer

from lightning_freeze.data import TextDataModule, read_table
from lightning_freeze.data.reading import arrow
from lightning_freeze.data.reading.arrow import SMALLEST_LIMIT
from lightning_freeze.errors import ConfigurationError

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def save(path: Path, content: Any, **options: Any) -> Path:
    parquet.write_table(content, path, compression="zstd", **options)
    return path


ROWS = 4000


def long_texts() -> Any:
    indices = pyarrow.array([0] * ROWS, pyarrow.int32())
    return pyarrow.DictionaryArray.from_arrays(indices, pyarrow.array(["x" * 1_000_000]))


def lists_of_long_texts() -> Any:
    return pyarrow.ListArray.from_arrays(pyarrow.array(range(ROWS + 1), pyarrow.int32()), long_texts())


BOMBS: dict[str, Callable[[], Any]] = {
    "one text, many times": lambda: pyarrow.table({"text": long_texts()}),
    "in a list": lambda: pyarrow.table({"text": lists_of_long_texts()}),
    "in a struct that is not used": lambda: pyarrow.table(
        {"other": pyarrow.StructArray.from_arrays([long_texts()], ["a"]), "text": ["a"] * ROWS}
    ),
    "nulls": lambda: pyarrow.table({"text": pyarrow.nulls(12_000_000, pyarrow.string())}),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_small_file_that_unpacks_to_gigabytes_is_refused(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / "bomb.parquet", BOMBS[name]())
    assert path.stat().st_size < 100_000
    with pytest.raises(ConfigurationError, match=rf"bomb\.parquet has .* to more than {SMALLEST_LIMIT:,} bytes"):
        read_table(path)


def test_long_lists_of_one_number_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow, "SMALLEST_LIMIT", 2**22)
    numbers = pyarrow.array([0] * 2_000_000, pyarrow.int8())
    content = pyarrow.table({"text": pyarrow.FixedSizeListArray.from_arrays(numbers, 10_000)})
    with pytest.raises(ConfigurationError, match=r"bomb\.parquet has .* unpacks to more than 4,194,304 bytes"):
        read_table(save(tmp_path / "bomb.parquet", content))


def test_repetition_within_the_limit_is_fine(tmp_path: Path) -> None:
    path = save(tmp_path / "same.parquet", pyarrow.table({"text": ["good film"] * 50_000}))
    assert path.stat().st_size < 2000 and len(read_table(path)) == 50_000


def test_all_types_arrive_as_they_were_written(tmp_path: Path) -> None:
    row = {
        "text": "good",
        "tokens": ["a", None],
        "struct": {"x": "q", "y": [b"1"]},
        "binary": b"\xff",
        "nested": [["a"], ["b"]],
        "decimal": Decimal("1.50"),
        "flag": True,
        "real": 0.5,
    }
    content = pyarrow.Table.from_pylist([row, dict.fromkeys(row)])
    content = content.append_column("large", pyarrow.array(["u", None], pyarrow.large_string()))
    content = content.append_column("coded", pyarrow.array(["v", None]).dictionary_encode())
    table = read_table(save(tmp_path / "types.parquet", content))
    assert list(table.rows) == content.to_pylist()


def test_a_text_that_is_not_utf8_is_named_by_its_row(tmp_path: Path) -> None:
    data = pyarrow.array([b"good"] * 2000 + [b"\xff"] + [b"bad"])
    content = pyarrow.table({"text": data.view(pyarrow.string())})
    with pytest.raises(ConfigurationError, match=r"a\.parquet, row 2001: "):
        read_table(save(tmp_path / "a.parquet", content))


def test_columns_of_one_name(tmp_path: Path) -> None:
    content = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["text", "text"])
    with pytest.raises(ConfigurationError, match=r"a\.parquet: the column 'text' occurs twice"):
        read_table(save(tmp_path / "a.parquet", content))


@pytest.mark.parametrize(
    "features", ["[]", "{}", '{"info": {"features": {"label": {"_type": "ClassLabel"}}}}', "{", "[" * 9999]
)
def test_a_damaged_declaration_of_classes_is_not_used(tmp_path: Path, features: str) -> None:
    content = pyarrow.table({"label": [1, 0]}).replace_schema_metadata({"huggingface": features})
    assert [row["label"] for row in read_table(save(tmp_path / "a.parquet", content)).rows] == [1, 0]


def test_a_damaged_dataset_is_named(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.DatasetDict(train=datasets.Dataset.from_dict({"text": ["a"]})).save_to_disk(str(tmp_path / "saved"))
    for index in ("dataset_dict.json", "train/state.json", "train/dataset_info.json"):
        sound = (tmp_path / "saved" / index).read_text()
        for damaged in ("{", "[]", json.dumps({"splits": 3}), "[" * 9999):
            (tmp_path / "saved" / index).write_text(damaged)
            with pytest.raises(ConfigurationError, match="saved"):
                TextDataModule(make_tokenizer(), data=str(tmp_path / "saved")).setup("fit")
        (tmp_path / "saved" / index).write_text(sound)


def test_the_format_of_a_saved_dataset_does_not_matter(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"text": ["good", "bad", "fine"], "label": [0, 1, 0]})
    data.with_format("torch").select([2, 0]).save_to_disk(str(tmp_path / "saved"))
    assert list(read_table(tmp_path / "saved").rows) == [{"text": "fine", "label": 0}, {"text": "good", "label": 0}]
