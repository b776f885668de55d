"""Converts labels from files into numbers, with a mapping that is the same on every machine."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from lightning_freeze.data.reading.table import Table
from lightning_freeze.data.reading.values import class_name, each, is_missing, number, on_off, shown
from lightning_freeze.errors import ConfigurationError, listing, suggest
from lightning_freeze.module.tasks import IGNORE_INDEX

IGNORED = str(IGNORE_INDEX)
"""The tag of a word that the loss and the metrics ignore, as in files for transformers."""

UNLABELLED = "-1"
"""The tag of a word without a label where the classes are numbered from 0 on, as ``datasets`` marks it."""

_SEPARATORS = re.compile(r"(?<=[^\W_])[\s_-]+(?=[^\W_])")
_Result = TypeVar("_Result")


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


def near_duplicates(names: Iterable[str]) -> list[list[str]]:
    """Return groups of class names that differ only in case, white space, hyphens, Unicode form or spelling.

    Spellings of one value are ``01`` and ``1``, or ``True`` and ``1``.

    Args:
        names: The class names.
    """
    groups: dict[str, list[str]] = {}
    for name in sorted(set(names)):
        groups.setdefault(_folded(name), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def given_class_names(names: Any) -> list[str]:
    """Return class names that the user lists, as they are written; numbers become text.

    Args:
        names: The names in the order of their indices.

    Raises:
        ConfigurationError: It is no list of names, or two of them name one class.
    """
    try:
        found = [class_name(name) for name in names] if isinstance(names, (list, tuple)) else []
    except ValueError as error:
        raise ConfigurationError(f"data.labels has an item that {error}.") from error
    if not found:
        raise ConfigurationError(f"data.labels is {shown(names)}: expected a list of class names.")
    doubled = next((name for name, count in Counter(found).items() if count > 1), None)
    if doubled is not None:
        raise ConfigurationError(f"data.labels is {shown(names)}: the class {doubled!r} occurs twice.")
    return [name if isinstance(name, str) else class_name(name) for name in names]


def class_names(table: Table, column: str) -> list[str]:
    """Return the class of each row.

    Args:
        table: The rows.
        column: The label column.

    Raises:
        ConfigurationError: A row has no label, or one that is no class.
    """
    return [_field(table, i, column, class_name) for i in range(len(table))]


def lists_of_names(table: Table, column: str) -> list[list[str]]:
    """Return the classes of each row whose field is a list.

    Args:
        table: The rows.
        column: The label column.

    Raises:
        ConfigurationError: A row has no list, or an item is missing or no class.
    """

    def names(value: Any) -> list[str]:
        if not isinstance(value, (list, tuple)):
            raise ValueError(
                f"is {shown(value)}, expected a list of names (JSONL or Parquet), or several label columns with 0 and 1"
            )
        return each(item_name, value)

    def item_name(item: Any) -> str:
        if is_missing(item):
            raise ValueError("is missing, expected the name of a class")
        if isinstance(item, float) and not item.is_integer():
            raise ValueError(f"is {item}, expected the name or number of a class")
        if column in table.class_columns and item == -1:
            return IGNORED
        return class_name(item)

    return [_converted(table, i, column, names) for i in range(len(table))]


def tags_are_numbered(names: Iterable[str]) -> bool:
    """Whether tags number the classes of words from 0 on, so that -1 stands for no label, and is no class.

    Args:
        names: The tags; -1 itself is left aside.
    """
    others = set(names) - {UNLABELLED, IGNORED}
    return len(others) > 1 and all(name.isdecimal() for name in others)


def count_unlabelled_tags(table: Table, column: str, labels: Sequence[str]) -> int:
    """Return how many words have the tag -1 that is no class.

    Args:
        table: The rows, with lists of tags.
        column: The label column.
        labels: The class names.
    """
    if UNLABELLED in labels or not tags_are_numbered(labels):
        return 0
    return sum(row.count(UNLABELLED) for row in lists_of_names(table, column))


def is_multi_hot(table: Table, column: str) -> bool:
    """Whether the lists of a column are zeros and ones, one for each class, and not the names of classes.

    Args:
        table: The rows.
        column: The label column.
    """
    lists = [value for row in table.rows if isinstance(value := row.get(column), (list, tuple))]
    lengths = {len(value) for value in lists}
    if len(lists) < len(table) or len(lengths) != 1 or lengths == {1}:
        return False
    return all(_is_flag(item) for value in lists for item in value)


def training_labels(task_name: str, target: str, table: Table, columns: Sequence[str]) -> list[str]:
    """Return the class names in the order of their indices, as the training rows show them.

    Args:
        task_name: The task, for messages.
        target: ``"class"``, ``"multilabel"`` or ``"token"``.
        table: The training rows.
        columns: The label columns. Lists of zeros and ones give the classes ``"0"``, ``"1"`` and so on, one for each
            position.

    Raises:
        ConfigurationError: There are too few classes, or so many that the column cannot hold classes.
    """
    if target == "multilabel" and len(columns) > 1:
        return list(columns)
    if target == "multilabel" and is_multi_hot(table, columns[0]):
        return [str(i) for i in range(len(table.rows[0][columns[0]]))]
    if target == "class":
        names = class_names(table, columns[0])
        _check_class_count(task_name, table, columns[0], names)
    else:
        names = [name for row in lists_of_names(table, columns[0]) for name in row if name != IGNORED]
        if target == "token" and tags_are_numbered(names):
            names = [name for name in names if name != UNLABELLED]
    labels = sorted_names(names)
    least = 1 if target == "multilabel" else 2
    if len(labels) < least:
        raise ConfigurationError(
            f"The training rows of {table.name} have {len(labels)} classes in {columns[0]!r} ({listing(labels)}): "
            f"expected at least {least}."
        )
    return labels


def encode_labels(
    target: str, table: Table, columns: Sequence[str], labels: Sequence[str], multi_hot: bool | None = None
) -> list[Any]:
    """Return the label of each row: an index, zeros and ones, a number, or an index for each token.

    Args:
        target: ``"class"``, ``"multilabel"``, ``"value"`` or ``"token"``.
        table: The rows.
        columns: The label columns.
        labels: The class names in the order of their indices.
        multi_hot: For multi-label data in one column, whether its lists hold zeros and ones (and not names); by
            default as the rows look.

    Raises:
        ConfigurationError: A label is missing, not a number, or unseen in training; the message names the row.
    """
    rows = range(len(table))
    index = {class_name(name): i for i, name in enumerate(labels)}
    if target == "value":
        return [_converted(table, i, columns[0], number) for i in rows]
    if target == "class":
        return [_index(table, i, name, index) for i, name in enumerate(class_names(table, columns[0]))]
    if target == "multilabel" and len(columns) > 1:
        return [[_converted(table, i, column, on_off) for column in columns] for i in rows]
    if target == "multilabel" and (is_multi_hot(table, columns[0]) if multi_hot is None else multi_hot):
        return [_converted(table, i, columns[0], lambda value: _flags(value, len(labels))) for i in rows]
    if target == "token":
        index[IGNORED] = IGNORE_INDEX
        if UNLABELLED not in index and tags_are_numbered(index):
            index[UNLABELLED] = IGNORE_INDEX
    indices = [
        [_index(table, i, name, index) for name in row] for i, row in enumerate(lists_of_names(table, columns[0]))
    ]
    if target == "token":
        return indices
    for i, row in enumerate(indices):
        value = table.rows[i][columns[0]]
        if len(set(row)) < len(row) and not any(isinstance(item, (str, bytes)) for item in value):
            problem = f"is {shown(value)}, expected each class once, or lists of zeros and ones of one length"
            raise table.error(i, columns[0], problem)
    return [[float(i in set(row)) for i in range(len(labels))] for row in indices]


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


def _field(table: Table, i: int, column: str, convert: Callable[[Any], _Result]) -> _Result:
    if is_missing(table.rows[i].get(column)):
        raise ConfigurationError(f"{table.where(i)}: the label {column!r} is empty: expected a value.")
    return _converted(table, i, column, convert)


def _converted(table: Table, i: int, column: str, convert: Callable[[Any], _Result]) -> _Result:
    value = table.rows[i].get(column)
    try:
        return convert(value)
    except ValueError as error:
        several = " (several classes per row are for the task 'multilabel')" if isinstance(value, list) else ""
        raise table.error(i, column, f"{error}{several if convert is class_name else ''}") from error


def _index(table: Table, i: int, name: str, index: dict[str, int]) -> int:
    if name not in index:
        known = [known for known in index if index[known] != IGNORE_INDEX]
        raise ConfigurationError(
            f"{table.where(i)}: the label {name!r} does not occur in training: expected one of {listing(known)}."
            f"{suggest(name, known)}"
        )
    return index[name]


def _is_flag(item: Any) -> bool:
    try:
        return class_name(item) in ("0", "1", "False", "True")
    except ValueError:
        return False


def _flags(value: Any, count: int) -> list[float]:
    if not isinstance(value, (list, tuple)) or len(value) != count:
        raise ValueError(f"is {shown(value)}, expected a list of {count} zeros and ones, as in training")
    return each(on_off, value)


def _folded(name: str) -> str:
    try:
        value = float({"true": "1", "false": "0"}.get(name.lower(), name))
        if math.isfinite(value) and len(name) < 15 and "_" not in name:
            return repr(value)
    except ValueError:
        pass
    visible = "".join(c for c in unicodedata.normalize("NFKC", name).casefold() if unicodedata.category(c) != "Cf")
    return _SEPARATORS.sub(" ", visible)
