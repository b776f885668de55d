"""Reads Parquet files and folders that ``datasets`` saved into tables, within a memory limit."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning_freeze.data.reading.table import Table
from lightning_freeze.errors import ConfigurationError, listing, suggest

SMALLEST_LIMIT = 2**30
"""Bytes to which any file may unpack."""
LARGEST_RATIO = 100
"""How many times its own size a larger file may unpack to; text compresses to a third or a tenth."""
_BATCH = 1024
_LIST_BATCH = 16
"""Rows that are read before their unpacked size is checked: fewer if a row may have any number of values."""
_ROW_BYTES = 100
_FIELD_BYTES = 50

ClassNames = Mapping[str, tuple[str, ...]]
"""The class names of each column that ``datasets`` declares to hold classes."""


def read_parquet(name: str, file: Path) -> Table:
    """Read a Parquet file.

    Args:
        name: The file, as the user named it.
        file: Its path.

    Raises:
        ConfigurationError: It cannot be read, or unpacks to far more than its size.
    """
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise needs_extra("Parquet files", "pyarrow") from error
    try:
        with parquet.ParquetFile(file) as probe:
            metadata, schema = probe.metadata, probe.schema_arrow
            leaves = [metadata.schema.column(i) for i in range(metadata.num_columns)]
        limit = _Limit(name, file.stat().st_size)
        limit.add(_declared_size(metadata))
        limit.start_again()
        # Read as dictionaries, repeated texts take the memory of one, so that they can be counted before they unpack.
        texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
        size = _LIST_BATCH if any(leaf.max_repetition_level for leaf in leaves) else _BATCH
        with parquet.ParquetFile(file, read_dictionary=texts) as reader:
            return _table(name, schema.names, reader.iter_batches(size), limit, _class_names(schema.metadata))
    except (ArrowException, OSError, ValueError, TypeError, OverflowError) as error:
        if isinstance(error, ConfigurationError):
            raise
        raise ConfigurationError(f"{name} is not a readable Parquet file: {_first_line(error)}") from error


def read_saved_dataset(name: str, folder: Path, split: str | None) -> Table:
    """Read a folder that ``datasets`` saved.

    Args:
        name: The folder, as the user named it.
        folder: Its path.
        split: The split to read, where it has several.

    Raises:
        ConfigurationError: It cannot be read, or has no such split.
    """
    try:
        from datasets import Dataset, DatasetDict, load_from_disk
    except ImportError as error:
        raise needs_extra("Hugging Face datasets on disk", "datasets") from error
    try:
        data: Any = load_from_disk(str(folder))
    except Exception as error:  # a damaged folder may cause any error in datasets, pyarrow or json
        raise ConfigurationError(f"The dataset {name!r} cannot be read: {_first_line(error)}") from error
    if isinstance(data, DatasetDict):
        if split not in data:
            raise ConfigurationError(
                f"The dataset {name!r} has no split {split!r}: its splits are {listing(data)}.{suggest(split, data)}"
            )
        data, name = data[split], f"{name}, split {split!r}"
    assert isinstance(data, Dataset)
    classes = {column: names for column, feature in data.features.items() if (names := _names(feature))}
    size = sum(file.stat().st_size for file in folder.rglob("*.arrow"))
    tables = data.with_format("arrow").iter(_BATCH)
    batches = (batch for table in tables for batch in table.to_batches())
    try:
        data.data.validate(full=True)  # a damaged file would otherwise end the process
        return _table(name, data.column_names, batches, _Limit(name, size), classes)
    except ConfigurationError:
        raise
    except Exception as error:  # as above
        raise ConfigurationError(f"The dataset {name!r} cannot be read: {_first_line(error)}") from error


def saved_splits(path: Path) -> tuple[str, ...]:
    """Return the names of the splits of a saved dataset; none for anything else.

    Args:
        path: A folder or file.

    Raises:
        ConfigurationError: The folder's list of splits cannot be read.
    """
    index = path / "dataset_dict.json"
    try:
        if not index.is_file():
            return ()
        splits = json.loads(index.read_text(encoding="utf-8"))["splits"]
        if not isinstance(splits, list) or not all(isinstance(split, str) for split in splits):
            raise TypeError("'splits' is no list of names")
        return tuple(splits)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigurationError(f"The dataset {str(path)!r} cannot be read: {_first_line(error)}") from error


def needs_extra(what: str, package: str) -> ConfigurationError:
    """Return the error for a missing package.

    Args:
        what: What needs it.
        package: Its name.
    """
    return ConfigurationError(
        f"{what} need the package {package!r}, which is not installed: expected "
        f"`pip install 'lightning-freeze[data]'`, or a CSV, TSV or JSONL file."
    )


class _Limit:
    """Counts the unpacked size of a file, and refuses a small file that would fill the memory."""

    def __init__(self, name: str, size: int) -> None:
        self.name = name
        self.size = size
        self.most = max(SMALLEST_LIMIT, LARGEST_RATIO * size)
        self.bytes = 0

    def add(self, count: int) -> None:
        self.bytes += count
        if self.bytes > self.most:
            raise ConfigurationError(
                f"{self.name} has {self.size:,} bytes and unpacks to more than {self.most:,} bytes: expected at most "
                f"{LARGEST_RATIO} times its size. If the file is sound, save it as JSONL."
            )

    def start_again(self) -> None:
        self.bytes = 0


def _table(name: str, columns: Iterable[str], batches: Iterable[Any], limit: _Limit, class_names: ClassNames) -> Table:
    columns = tuple(columns)
    doubled = {column for column in columns if columns.count(column) > 1}
    if doubled:
        raise ConfigurationError(f"{name}: the column {sorted(doubled)[0]!r} occurs twice: expected distinct names.")
    rows: list[dict[str, Any]] = []
    for batch in batches:
        limit.add(batch.num_rows * (_ROW_BYTES + _FIELD_BYTES * len(columns)))
        limit.add(sum(_unpacked_size(column) for column in batch.columns))
        rows += _rows(name, batch, len(rows))
    for column, names in class_names.items():
        for number, row in enumerate(rows, start=1):
            row[column] = _with_names(f"{name}, row {number}: {column!r}", row.get(column), names)
    return Table(name, columns, rows, range(1, len(rows) + 1), "row", frozenset(class_names))


def _rows(name: str, batch: Any, before: int) -> list[dict[str, Any]]:
    try:
        converted: list[dict[str, Any]] = batch.to_pylist()
        return converted
    except (ValueError, TypeError, OverflowError):
        for i in range(batch.num_rows):
            try:
                batch.slice(i, 1).to_pylist()
            except (ValueError, TypeError, OverflowError) as error:
                raise ConfigurationError(f"{name}, row {before + i + 1}: {_first_line(error)}") from error
        raise


def _unpacked_size(array: Any) -> int:
    """Return the bytes that an array takes without dictionaries."""
    from pyarrow import compute, types

    kind = array.type
    if types.is_dictionary(kind):
        values = array.dictionary
        texts = (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary)
        if not any(is_text(values.type) for is_text in texts):
            return len(array) * max(8, int(values.nbytes) // max(1, len(values)))
        lengths = compute.binary_length(values).cast("int64").take(array.indices)
        return int(compute.sum(lengths).as_py() or 0)
    if types.is_struct(kind):
        return sum(_unpacked_size(field) for field in array.flatten())
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        inner = array.flatten()
        return _FIELD_BYTES * len(array) + 8 * len(inner) + _unpacked_size(inner)
    if types.is_map(kind):
        return _unpacked_size(array.keys) + _unpacked_size(array.items)
    return int(array.nbytes)


def _declared_size(metadata: Any) -> int:
    # Only fields that pyarrow reads without decoding column statistics: damaged statistics would end the process.
    groups = (metadata.row_group(i) for i in range(metadata.num_row_groups))
    return int(sum(group.total_byte_size for group in groups) + _ROW_BYTES * metadata.num_rows)


def _class_names(metadata: Mapping[bytes, bytes] | None) -> ClassNames:
    """Return the class names that ``datasets`` writes into the header of a Parquet file."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return {column: names for column, feature in features.items() if (names := _names(feature))}
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError):
        return {}


def _names(feature: Any) -> tuple[str, ...]:
    """Return the names of a class feature, or of a list of them; as objects of ``datasets`` or as their JSON."""
    if isinstance(feature, list) and len(feature) == 1:
        feature = feature[0]
    if isinstance(feature, Mapping) and "feature" in feature:
        feature = feature["feature"]
    feature = getattr(feature, "feature", feature)
    if isinstance(feature, Mapping):
        is_class, names = feature.get("_type") == "ClassLabel", feature.get("names")
    else:
        is_class, names = hasattr(feature, "int2str"), getattr(feature, "names", None)
    return tuple(map(str, names)) if is_class and isinstance(names, list) else ()


def _with_names(where: str, value: Any, names: tuple[str, ...]) -> Any:
    """Give class numbers their names; -1, which means that there is no label, stays."""
    if isinstance(value, list):
        return [_with_names(where, item, names) for item in value]
    if isinstance(value, bool) or not isinstance(value, int) or value == -1:
        return value
    if not 0 <= value < len(names):
        raise ConfigurationError(f"{where} is {value}, expected a class from 0 to {len(names) - 1}, or -1 for none.")
    return names[value]


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
