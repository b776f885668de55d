"""Files into tables of rows. A malformed file gives an error that names the file and the line."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning_freeze.data.reading import arrow
from lightning_freeze.data.reading.table import Table
from lightning_freeze.data.reading.values import trimmed
from lightning_freeze.errors import ConfigurationError, listing, suggest

__all__ = ["Table", "read_table", "saved_splits"]


def read_table(path: str | os.PathLike[str], split: str | None = None) -> Table:
    """Read a data file.

    CSV files are comma-separated with quotes as spreadsheets write them; TSV files are tab-separated without quotes;
    JSONL files hold one object per line. All are UTF-8, and the first line of CSV and TSV names the columns.

    Args:
        path: A ``.csv``, ``.tsv``, ``.jsonl`` or ``.parquet`` file, or a folder that ``datasets`` saved.
        split: For a saved folder with several splits, the one to read.

    Raises:
        ConfigurationError: The file is missing, unreadable, empty, of an unknown kind, or malformed; the message names
            the line.
    """
    name = os.fspath(path)
    try:
        table = _read(name, _expanded(name), split)
    except OSError as error:
        raise ConfigurationError(f"The data file {name!r} cannot be read: {error.strerror or error}.") from error
    if not len(table):
        raise ConfigurationError(f"The data file {name!r} has no rows: expected at least one below the header.")
    return table


def saved_splits(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Return the names of the splits of a saved Hugging Face dataset; none for anything else.

    Args:
        path: A folder or file.

    Raises:
        ConfigurationError: The folder's list of splits cannot be read.
    """
    return arrow.saved_splits(_expanded(os.fspath(path)))


def _read(name: str, file: Path, split: str | None) -> Table:
    if file.is_dir():
        if not any((file / index).is_file() for index in ("dataset_dict.json", "dataset_info.json")):
            raise ConfigurationError(
                f"The folder {name!r} holds no saved dataset: expected one that datasets.save_to_disk wrote, or a file "
                f"({listing(_READERS)}).{_siblings(file / '_', 'Files in it')}"
            )
        return arrow.read_saved_dataset(name, file, split)
    if file.is_symlink() and not file.exists():
        raise ConfigurationError(
            f"The data file {name!r} is a link to {os.readlink(file)!r}, which does not exist: expected a file."
        )
    if file.exists() and not file.is_file():
        raise ConfigurationError(f"The data file {name!r} is no regular file: expected a file or a folder.")
    if not file.is_file():
        raise ConfigurationError(f"The data file {name!r} does not exist.{_siblings(file)}")
    if file.suffix.lower() not in _READERS:
        raise ConfigurationError(
            f"The data file {name!r} has the unknown extension {file.suffix!r}: expected one of "
            f"{listing(_READERS)}, or a folder that datasets.save_to_disk wrote.{suggest(file.suffix, _READERS)}"
        )
    if file.stat().st_size == 0:
        raise ConfigurationError(f"The data file {name!r} is empty: expected at least one row.")
    return _READERS[file.suffix.lower()](name, file)


def _expanded(name: str) -> Path:
    try:
        if "\0" in name:
            raise ValueError("it contains a null character")
        return Path(name).expanduser()
    except (RuntimeError, ValueError) as error:
        raise ConfigurationError(f"The data file {name!r} does not exist: {error}.") from error


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
        header = [trimmed(column) for column in next(reader, [])]
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
        row = _json_object(f"{name}, line {number}", line)
        rows.append(row)
        numbers.append(number)
        columns.update(dict.fromkeys(row))
    return Table(name, tuple(columns), rows, numbers)


def _json_object(where: str, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        raise ConfigurationError(
            f"{where}: malformed JSON ({error.msg}, column {error.colno}): expected one object a "
            f"line, for example {{'text': '...', 'label': '...'}} with double quotes."
        ) from error
    except RecursionError as error:
        raise ConfigurationError(f"{where}: the JSON is nested too deeply: expected lists and objects.") from error
    except ValueError as error:  # a name that occurs twice, a number of thousands of digits
        raise ConfigurationError(f"{where}: {error}.") from error
    if not isinstance(row, dict):
        raise ConfigurationError(f"{where}: a {type(row).__name__}, expected one JSON object with named fields a line.")
    return row


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        doubled = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the field {doubled!r} occurs twice, expected distinct names")
    return result


def _text(name: str, file: Path) -> str:
    content = file.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        encoding = "UTF-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "WINDOWS-1252"
        raise ConfigurationError(
            f"{name}, line {line}: byte 0x{content[error.start]:02x} is not UTF-8. Expected a UTF-8 file; convert it "
            f"first, for example with `iconv -f {encoding} -t UTF-8`."
        ) from error


def _siblings(file: Path, title: str = "Data files beside it") -> str:
    if not file.parent.is_dir():
        return f" Its folder {str(file.parent)!r} does not exist either."
    names = sorted(child.name for child in file.parent.iterdir() if child.suffix.lower() in _READERS)
    return suggest(file.name, names) or (f" {title}: {listing(names, 5)}." if names else "")


_READERS: dict[str, Callable[[str, Path], Table]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".parquet": arrow.read_parquet,
}
