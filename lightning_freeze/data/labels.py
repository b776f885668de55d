"""Labels from files into numbers, with a mapping that is the same on every machine."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from lightning_freeze.data.readers import Table
from lightning_freeze.errors import ConfigurationError, listing, suggest

_ON_OFF = {"1": 1.0, "0": 0.0, "true": 1.0, "false": 0.0}


def is_missing(value: Any) -> bool:
    """Whether a field holds nothing: None, not-a-number, or blank text.

    Args:
        value: The field.
    """
    return value is None or (isinstance(value, float) and math.isnan(value)) or str(value).strip() == ""


def class_name(value: Any) -> str:
    """Return the name of a class, the same for 1, 1.0 and "1".

    Args:
        value: A string or a number.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()


def sorted_names(names: Iterable[str]) -> list[str]:
    """Sort class names: by value if all are numbers, by spelling otherwise.

    Args:
        names: The names; doubles are dropped.
    """
    unique = set(names)
    try:
        values = {name: float(name) for name in unique}
    except ValueError:
        return sorted(unique)
    return sorted(unique, key=lambda name: (values[name], name) if math.isfinite(values[name]) else (math.inf, name))


def class_names(table: Table, column: str) -> list[str]:
    """Return the class of each row.

    Args:
        table: The rows.
        column: The label column.

    Raises:
        ConfigurationError: A row has no label.
    """
    return [class_name(_value(table, i, column)) for i in range(len(table))]


def lists_of_names(table: Table, column: str) -> list[list[str]]:
    """Return the classes of each row whose field is a list.

    Args:
        table: The rows.
        column: The label column.

    Raises:
        ConfigurationError: A row has no list.
    """
    result = []
    for i in range(len(table)):
        value = table.rows[i].get(column)
        if not isinstance(value, (list, tuple)):
            raise ConfigurationError(
                f"{table.where(i)}: {column!r} is {value!r}, expected a list of names (JSONL or Parquet), or several "
                f"label columns with 0 and 1."
            )
        result.append([class_name(item) for item in value])
    return result


def training_labels(task_name: str, target: str, table: Table, columns: Sequence[str]) -> list[str]:
    """Return the class names in the order of their indices, as the training rows show them.

    Args:
        task_name: The task, for messages.
        target: ``"class"``, ``"multilabel"`` or ``"token"``.
        table: The training rows.
        columns: The label columns.

    Raises:
        ConfigurationError: There are too few classes, or so many that the column cannot hold classes.
    """
    if target == "multilabel" and len(columns) > 1:
        return list(columns)
    if target == "class":
        names = class_names(table, columns[0])
        _check_class_count(task_name, table, columns[0], names)
    else:
        names = [name for row in lists_of_names(table, columns[0]) for name in row]
    labels = sorted_names(names)
    least = 1 if target == "multilabel" else 2
    if len(labels) < least:
        raise ConfigurationError(
            f"The training rows of {table.name} have {len(labels)} classes in {columns[0]!r} ({listing(labels)}): "
            f"expected at least {least}."
        )
    return labels


def encode_labels(target: str, table: Table, columns: Sequence[str], labels: Sequence[str]) -> list[Any]:
    """Return the label of each row: an index, zeros and ones, a number, or an index for each token.

    Args:
        target: ``"class"``, ``"multilabel"``, ``"value"`` or ``"token"``.
        table: The rows.
        columns: The label columns.
        labels: The class names in the order of their indices.

    Raises:
        ConfigurationError: A label is missing, not a number, or unseen in training; the message names the row.
    """
    index = {name: i for i, name in enumerate(labels)}
    if target == "value":
        return [_number(table, i, columns[0]) for i in range(len(table))]
    if target == "class":
        return [_index(table, i, name, index) for i, name in enumerate(class_names(table, columns[0]))]
    if target == "multilabel" and len(columns) > 1:
        return [[_on_off(table, i, column) for column in columns] for i in range(len(table))]
    rows = [[_index(table, i, name, index) for name in row] for i, row in enumerate(lists_of_names(table, columns[0]))]
    if target == "token":
        return rows
    return [[float(i in set(row)) for i in range(len(labels))] for row in rows]


def majority_share(train: Sequence[str], test: Sequence[str]) -> float:
    """Return the share of the most frequent training class among the test rows: the baseline of accuracy.

    Args:
        train: The class of each training row.
        test: The class of each test row.
    """
    counts = Counter(train)
    most = min(counts, key=lambda name: (-counts[name], name))
    return sum(name == most for name in test) / len(test)


def _check_class_count(task_name: str, table: Table, column: str, names: Sequence[str]) -> None:
    count = len(set(names))
    if count > max(20, len(names) // 2):
        raise ConfigurationError(
            f"{table.name} has {count} different values in {column!r} in {len(names)} training rows, which are no "
            f"classes for {task_name!r}: expected another label column, or the task 'regression' for numbers."
        )


def _value(table: Table, i: int, column: str) -> Any:
    value = table.rows[i].get(column)
    if is_missing(value):
        raise ConfigurationError(f"{table.where(i)}: the label {column!r} is empty: expected a value.")
    return value


def _number(table: Table, i: int, column: str) -> float:
    value = table.rows[i].get(column)
    try:
        number = float("nan") if value is None else float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not math.isfinite(number):
        raise ConfigurationError(f"{table.where(i)}: {column!r} is {value!r}, expected a finite number.")
    return number


def _on_off(table: Table, i: int, column: str) -> float:
    value = table.rows[i].get(column)
    name = class_name(value).lower()
    if name not in _ON_OFF:
        raise ConfigurationError(f"{table.where(i)}: {column!r} is {value!r}, expected 0 or 1.")
    return _ON_OFF[name]


def _index(table: Table, i: int, name: str, index: dict[str, int]) -> int:
    if name not in index:
        raise ConfigurationError(
            f"{table.where(i)}: the label {name!r} does not occur in training: expected one of {listing(index)}."
            f"{suggest(name, index)}"
        )
    return index[name]
