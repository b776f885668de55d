"""Files into tables of rows, each with a message that says where it is wrong."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightning_freeze.errors import ConfigurationError, listing, suggest


@dataclass(frozen=True)
class Table:
    """The rows of one file.

    Args:
        name: The file, as the user named it.
        columns: The names of its columns.
        rows: One mapping from column to value each.
        numbers: For each row, where it stands in the file (line or row number, from 1).
        unit: What the numbers count: ``"line"`` or ``"row"``.
    """

    name: str
    columns: tuple[str, ...]
    rows: Sequence[dict[str, Any]]
    numbers: Sequence[int]
    unit: str = "line"

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.rows)

    def where(self, index: int) -> str:
        """Return where a row stands, for messages.

        Args:
            index: Position of the row in this table.
        """
        return f"{self.name}, {self.unit} {self.numbers[index]}"

    def take(self, indices: Iterable[int]) -> Table:
        """Return a table of some of the rows, which keep their numbers.

        Args:
            indices: Positions of the rows.
        """
        kept = list(indices)
        return replace(self, rows=[self.rows[i] for i in kept], numbers=[self.numbers[i] for i in kept])

    def require(self, column: str, argument: str) -> None:
        """Check that a column exists.

        Args:
            column: Its name.
            argument: The argument that named it, for the message.

        Raises:
            ConfigurationError: There is no such column.
        """
        if column not in self.columns:
            header = " The first line must hold the column names." if self.name.endswith((".csv", ".tsv")) else ""
            raise ConfigurationError(
                f"{self.name} has no column {column!r} ({argument}): its columns are {listing(self.columns)}."
                f"{suggest(column, self.columns)}{header}"
            )


def read_table(path: str | os.PathLike[str], split: str | None = None) -> Table:
    """Read a data file.

    CSV files are comma-separated with quotes as spreadsheets write them; TSV files are tab-separated without quotes;
    JSONL files hold one object per line. All are UTF-8, and the first line of CSV and TSV names the columns.

    Args:
        path: A ``.csv``, ``.tsv``, ``.jsonl`` or ``.parquet`` file, or a folder that ``datasets`` saved.
        split: For a saved folder with several splits, the one to read.

    Raises:
        ConfigurationError: The file is missing, empty, of an unknown kind, or malformed; the message names the
            line.
    """
    name, file = os.fspath(path), Path(path).expanduser()
    if file.is_dir():
        table = _read_saved_dataset(name, file, split)
    else:
        if not file.is_file():
            raise ConfigurationError(f"The data file {name!r} does not exist.{_siblings(file)}")
        if file.suffix.lower() not in _READERS:
            raise ConfigurationError(
                f"The data file {name!r} has the unknown extension {file.suffix!r}: expected one of "
                f"{listing(_READERS)}, or a folder that datasets.save_to_disk wrote.{suggest(file.suffix, _READERS)}"
            )
        if file.stat().st_size == 0:
            raise ConfigurationError(f"The data file {name!r} is empty: expected at least one row.")
        table = _READERS[file.suffix.lower()](name, file)
    if not len(table):
        raise ConfigurationError(f"The data file {name!r} has no rows: expected at least one below the header.")
    return table


def saved_splits(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Return the names of the splits of a saved Hugging Face dataset; none for anything else.

    Args:
        path: A folder or file.
    """
    index = Path(path).expanduser() / "dataset_dict.json"
    return tuple(json.loads(index.read_text(encoding="utf-8"))["splits"]) if index.is_file() else ()


def _read_csv(name: str, file: Path) -> Table:
    return _read_separated(name, file, delimiter=",", quoting=csv.QUOTE_MINIMAL)


def _read_tsv(name: str, file: Path) -> Table:
    return _read_separated(name, file, delimiter="\t", quoting=csv.QUOTE_NONE)


def _read_separated(name: str, file: Path, delimiter: str, quoting: Any) -> Table:
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(io.StringIO(_text(name, file), newline=""), delimiter=delimiter, quoting=quoting, strict=True)
    rows: list[dict[str, Any]] = []
    numbers: list[int] = []
    try:
        header = [column.strip() for column in next(reader, [])]
        doubled = {column for column in header if header.count(column) > 1}
        if doubled:
            raise ConfigurationError(
                f"{name}, line 1: the column {sorted(doubled)[0]!r} stands twice in the header: expected the first "
                f"line to hold distinct column names."
            )
        start = reader.line_num + 1
        for fields in reader:
            if fields and len(fields) != len(header):
                raise ConfigurationError(
                    f"{name}, line {start}: {len(fields)} fields, expected {len(header)} as in the header "
                    f"({listing(header)}). Fields that hold {delimiter!r} or a line break need "
                    f"{'double quotes around them' if delimiter == ',' else 'a CSV or JSONL file'}."
                )
            if fields:
                rows.append(dict(zip(header, fields, strict=True)))
                numbers.append(start)
            start = reader.line_num + 1
    except csv.Error as error:
        raise ConfigurationError(f"{name}, line {reader.line_num}: malformed row ({error}).") from error
    return Table(name, tuple(header), rows, numbers)


def _read_jsonl(name: str, file: Path) -> Table:
    rows: list[dict[str, Any]] = []
    numbers: list[int] = []
    columns: dict[str, None] = {}
    for number, line in enumerate(_text(name, file).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ConfigurationError(
                f"{name}, line {number}: malformed JSON ({error.msg}, column {error.colno}): expected one object a "
                f"line, for example {{'text': '...', 'label': '...'}} with double quotes."
            ) from error
        if not isinstance(row, dict):
            raise ConfigurationError(
                f"{name}, line {number}: a {type(row).__name__}, expected one JSON object with named fields a line."
            )
        rows.append(row)
        numbers.append(number)
        columns.update(dict.fromkeys(row))
    return Table(name, tuple(columns), rows, numbers)


def _read_parquet(name: str, file: Path) -> Table:
    try:
        from pyarrow import ArrowInvalid, parquet
    except ImportError as error:
        raise _needs_extra("Parquet files", "pyarrow") from error
    try:
        content = parquet.read_table(file)
    except (ArrowInvalid, OSError) as error:
        raise ConfigurationError(f"{name} is not a readable Parquet file: {error}") from error
    rows = content.to_pylist()
    return Table(name, tuple(content.column_names), rows, range(1, len(rows) + 1), unit="row")


def _read_saved_dataset(name: str, folder: Path, split: str | None) -> Table:
    if not any((folder / index).is_file() for index in ("dataset_dict.json", "dataset_info.json")):
        raise ConfigurationError(
            f"The folder {name!r} holds no saved dataset: expected one that datasets.save_to_disk wrote, or a file "
            f"({listing(_READERS)}).{_siblings(folder / '_', 'Files in it')}"
        )
    try:
        from datasets import Dataset, DatasetDict, load_from_disk
    except ImportError as error:
        raise _needs_extra("Hugging Face datasets on disk", "datasets") from error
    data: Any = load_from_disk(str(folder))
    if isinstance(data, DatasetDict):
        if split not in data:
            raise ConfigurationError(
                f"The dataset {name!r} has no split {split!r}: its splits are {listing(data)}.{suggest(split, data)}"
            )
        data = data[split]
    assert isinstance(data, Dataset)
    rows = [_with_class_names(row, data.features) for row in data]
    return Table(name, tuple(data.column_names), rows, range(1, len(rows) + 1), unit="row")


def _with_class_names(row: Any, features: Any) -> dict[str, Any]:
    """Give class labels their names, which a saved dataset keeps apart from the numbers."""
    named: dict[str, Any] = {}
    for column, value in row.items():
        feature = features[column]
        feature = getattr(feature, "feature", feature)
        if value is not None and hasattr(feature, "int2str"):
            value = [feature.int2str(v) for v in value] if isinstance(value, list) else feature.int2str(value)
        named[column] = value
    return named


def _text(name: str, file: Path) -> str:
    content = file.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigurationError(
            f"{name}, line {line}: byte 0x{content[error.start]:02x} is not UTF-8. Expected a UTF-8 file; convert it "
            f"first, for example with `iconv -f WINDOWS-1252 -t UTF-8`."
        ) from error


def _siblings(file: Path, title: str = "Data files beside it") -> str:
    if not file.parent.is_dir():
        return f" Its folder {str(file.parent)!r} does not exist either."
    names = sorted(child.name for child in file.parent.iterdir() if child.suffix.lower() in _READERS)
    return suggest(file.name, names) or (f" {title}: {listing(names, 5)}." if names else "")


def _needs_extra(what: str, package: str) -> ConfigurationError:
    return ConfigurationError(
        f"{what} need the package {package!r}, which is not installed: expected "
        f"`pip install 'lightning-freeze[data]'`, or a CSV, TSV or JSONL file."
    )


_READERS: dict[str, Callable[[str, Path], Table]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".parquet": _read_parquet,
}
