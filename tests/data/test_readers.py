"""Every kind of file gives the same rows, and a message that names the line where it is wrong."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_freeze.data.reading.readers import read_table, saved_splits

ROWS = [{"text": "good, really", "label": "pos"}, {"text": 'a "bad" one', "label": "neg"}]
Write = Callable[[str, str], Path]


def save(folder: Path, extension: str) -> Path:
    path = folder / f"rows{extension}"
    if extension == ".csv":
        path.write_text('text,label\n"good, really",pos\n"a ""bad"" one",neg\n', encoding="utf-8")
    elif extension == ".tsv":
        path.write_text('text\tlabel\ngood, really\tpos\na "bad" one\tneg\n', encoding="utf-8")
    elif extension == ".jsonl":
        path.write_text("\n".join(map(json.dumps, ROWS)) + "\n\n", encoding="utf-8")
    elif extension == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    else:
        path = folder / "saved"
        pytest.importorskip("datasets").Dataset.from_list(ROWS).save_to_disk(str(path))
    return path


@pytest.mark.parametrize("extension", [".csv", ".tsv", ".jsonl", ".parquet", "saved dataset"])
def test_all_formats_give_the_same_rows(tmp_path: Path, extension: str) -> None:
    table = read_table(save(tmp_path, extension))
    assert list(table.rows) == ROWS
    assert table.columns == ("text", "label")


def test_where_names_the_first_line_of_a_row_with_line_breaks(write: Write) -> None:
    table = read_table(write("rows.csv", 'text,label\n"one\ntwo",pos\nthree,neg\n'))
    assert [table.where(i).rsplit(", ")[-1] for i in range(2)] == ["line 2", "line 4"]
    assert table.take([1]).where(0).endswith("line 4")


def test_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    path = tmp_path / "excel.csv"
    path.write_text("text,label\na,b\n", encoding="utf-8-sig")
    assert read_table(path).columns == ("text", "label")


def test_saved_dataset_with_splits_and_class_names(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    rows = datasets.Dataset.from_list([{"text": "good", "label": 1}], features=features)
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(str(tmp_path / "both"))
    assert saved_splits(tmp_path / "both") == ("train", "test")
    assert read_table(tmp_path / "both", "test").rows[0]["label"] == "pos"
    with pytest.raises(MisconfigurationException, match=r"no split 'tests'.*'train', 'test'.*Did you mean 'test'"):
        read_table(tmp_path / "both", "tests")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", r"a\.csv' is empty"),
        ("a.csv", "text,label\n", r"has no rows"),
        ("a.jsonl", "\n\n", r"has no rows"),
        ("a.txt", "x", r"unknown extension '\.txt'.*'\.csv'"),
        ("a.cvs", "x", r"Did you mean '\.csv'"),
        ("a.csv", "text,label\na,b\na,b,c\n", r"line 3: 3 fields, expected 2.*'text', 'label'"),
        ("a.tsv", "text\tlabel\na\n", r"line 2: 1 fields, expected 2"),
        ("a.csv", 'text,label\n"a" b,c\n', r"line 2: malformed row"),
        ("a.csv", "text,text\na,b\n", r"'text' stands twice"),
        ("a.jsonl", '{"text": "a"}\n{"text": b}\n', r"line 2: malformed JSON .*column 10"),
        ("a.jsonl", "[1]\n", r"line 1: a list, expected one JSON object"),
        ("a.jsonl", '{"a": 1}\n' + "[" * 100_000, r"line 2: the JSON is nested too deeply"),
        ("a.jsonl", '{"a": ' + "9" * 5000 + "}", r"line 1: .*digits"),
        ("a.jsonl", '{"a": 1}\n\n{"a": 1, "b": 2, "a": 3}', r"line 3: the field 'a' occurs twice"),
        ("a.parquet", "no parquet", r"not a readable Parquet file"),
    ],
)
def test_malformed_files(write: Write, name: str, content: str, message: str) -> None:
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    with pytest.raises(MisconfigurationException, match=message):
        read_table(write(name, content))


def test_not_utf8_names_line_and_byte(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"text,label\nok,a\ncaf\xe9,b\n")
    with pytest.raises(MisconfigurationException, match=r"line 3: byte 0xe9 is not UTF-8.*iconv"):
        read_table(tmp_path / "a.csv")


def test_missing_file_names_the_nearest(write: Write) -> None:
    path = write("reviews.csv", "text\na\n")
    with pytest.raises(MisconfigurationException, match=r"review\.csv' does not exist.*Did you mean 'reviews\.csv'"):
        read_table(path.with_name("review.csv"))
    with pytest.raises(MisconfigurationException, match=r"folder .* does not exist either"):
        read_table(path.parent / "nowhere" / "a.csv")


def test_folder_without_a_dataset(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match="holds no saved dataset"):
        read_table(tmp_path)


def test_missing_column_names_the_closest(write: Write) -> None:
    table = read_table(write("a.csv", "Text,stars\na,1\n"))
    with pytest.raises(MisconfigurationException, match=r"no column 'text' \(data\.text\).*Did you mean 'Text'"):
        table.require("text", "data.text")


@pytest.mark.parametrize(("extension", "package"), [(".parquet", "pyarrow"), ("saved dataset", "datasets")])
def test_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extension: str, package: str) -> None:
    path = save(tmp_path, extension)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MisconfigurationException, match=rf"package '{package}'.*lightning-freeze\[data\]"):
        read_table(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [("a\0.csv", "null character"), ("~nobody-here/a.csv", "does not exist"), ("x" * 300 + ".csv", r"")],
)
def test_names_that_no_file_can_have(tmp_path: Path, name: str, message: str) -> None:
    path = name if name.startswith("~") else str(tmp_path / name)
    with pytest.raises(MisconfigurationException, match=rf"(?s)data file .*{message}"):
        read_table(path)


def test_a_file_that_cannot_be_read(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    path = write("a.csv", "text\na\n")
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(MisconfigurationException, match=r"a\.csv' cannot be read: Permission denied"):
        read_table(path)
