"""Rows without a label, which benchmarks mark with -1: hidden test labels, examples without agreement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lightning_freeze.data.labels import UNLABELLED, tags_are_numbered
from lightning_freeze.data.reading.table import Table
from lightning_freeze.data.reading.values import class_name, is_missing, number
from lightning_freeze.errors import ConfigurationError
from lightning_freeze.module.tasks import Target

_MARK = UNLABELLED


@dataclass(frozen=True)
class LabelColumns:
    """The label columns of a task, and what is known of its classes.

    Args:
        target: What one label is.
        names: The columns.
        classes: The class names, where they are given.
    """

    target: Target
    names: tuple[str, ...]
    classes: Sequence[str] | None


def without_unlabelled(tables: dict[str, Table], labels: LabelColumns) -> dict[str, Table]:
    """Return the tables without the rows that have no label, and say in one line for each split what was left out.

    The label -1 means "no label" where ``datasets`` declares the column to hold classes, in 0/1 columns of multi-label
    data, where -1 is no class of the training rows, and where the other training classes are names, or 0, 1, 2 and so
    on. Training classes of -1, 0 and 1 alone are classes, and so is -1 where the class names are given with it. A
    regression split other than training has no labels if all of them are -1 and no training target is. A missing value
    means "no label" where -1 would, in a column that ``datasets`` declares to hold classes, and where all rows of a
    split other than training lack one.

    Args:
        tables: The rows by split; ``"train"`` decides what is a class, and ``"predict"`` needs no labels.
        labels: Where the labels stand.

    Raises:
        ConfigurationError: No training row has a label.
    """
    if labels.target in ("next-token", "target-token"):
        return tables
    train = tables.get("train")
    result = {}
    for name, table in tables.items():
        dropped = set() if name == "predict" else set(_unlabelled(name, table, train, labels))
        if not dropped:
            result[name] = table
            continue
        which = "all" if len(dropped) == len(table) else str(len(dropped))
        value = "empty" if _is_empty(table.rows[min(dropped)], labels) else "-1"
        left_out = f"{table.name}: {which} of {len(table)} rows have no label ({labels.names[0]!r} is {value})"
        if len(dropped) < len(table):
            rank_zero_info(f"{left_out} and are left out of {name!r}.")
            result[name] = table.take(i for i in range(len(table)) if i not in dropped)
        elif name == "train":
            raise ConfigurationError(f"{left_out}: expected labelled rows for training.")
        else:
            rank_zero_info(f"{left_out}: there is no {name!r} split.")
    return result


def without_label_columns(tables: dict[str, Table], labels: LabelColumns) -> dict[str, Table]:
    """Return the splits of a dataset without those that have no labels to evaluate with, and say so in one line each.

    Args:
        tables: The rows by split. The training split is never left out.
        labels: Where the labels stand.
    """
    if labels.target == "next-token":
        return tables
    result = {}
    for name, table in tables.items():
        absent = [column for column in labels.names if column not in table.columns]
        if name == "train" or not absent or any(column not in tables["train"].columns for column in absent):
            result[name] = table
        else:
            rank_zero_info(f"{table.name}: there is no column {absent[0]!r}, so there is no {name!r} split.")
    return result


def _unlabelled(name: str, table: Table, train: Table | None, labels: LabelColumns) -> list[int]:
    empty = [i for i, row in enumerate(table.rows) if _is_empty(row, labels)]
    if empty and len(empty) == len(table) and name != "train":
        return empty
    if empty and table.class_columns.intersection(labels.names):
        return [i for i, row in enumerate(table.rows) if _is_empty(row, labels) or _is_marked(row, labels)]
    marked = [i for i, row in enumerate(table.rows) if _is_marked(row, labels)]
    if not marked:
        return []
    if labels.target == "value":
        everywhere = name != "train" and len(marked) == len(table) > 1
        used = train is not None and any(_is_marked(row, labels) for row in train.rows)
        return marked if everywhere and not used else []
    if len(labels.names) > 1 or table.class_columns.intersection(labels.names):
        return marked
    return [] if _is_class(train, labels) else marked


def _is_empty(row: dict[str, Any], labels: LabelColumns) -> bool:
    return all(is_missing(row.get(column)) for column in labels.names)


def _is_marked(row: dict[str, Any], labels: LabelColumns) -> bool:
    values = [row.get(column) for column in labels.names]
    if len(values) == 1 and isinstance(values[0], (list, tuple)):
        values = list(values[0])
    convert: Callable[[Any], Any] = number if labels.target == "value" else class_name
    return bool(values) and all(_safely(convert, value) in (_MARK, -1.0) for value in values)


def _is_class(train: Table | None, labels: LabelColumns) -> bool:
    """Whether -1 is a class, rather than the mark of a missing label."""
    if labels.classes is not None:
        return _MARK in map(class_name, labels.classes)
    if train is None:
        return True
    values = [row.get(labels.names[0]) for row in train.rows]
    items = [item for value in values for item in (value if isinstance(value, (list, tuple)) else [value])]
    names = {name for item in items if (name := _safely(class_name, item)) is not None}
    if _MARK in names and labels.target == "token":
        return not tags_are_numbered(names)
    if _MARK not in names or labels.target != "class":
        return _MARK in names
    others = names - {_MARK}
    counted = len(others) > 2 and others == {str(i) for i in range(len(others))}
    return not counted and all(_safely(number, name) is not None for name in others)


def _safely(convert: Callable[[Any], Any], value: Any) -> Any:
    try:
        return convert(value)
    except ValueError:
        return None
