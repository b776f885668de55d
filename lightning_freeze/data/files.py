"""The files of a user into one table for each split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lightning_freeze.data.columns import Columns, GivenColumns, check_texts
from lightning_freeze.data.reading.readers import read_table, saved_splits
from lightning_freeze.data.reading.splits import SPLITS, split_of_file, splits_of_dataset
from lightning_freeze.data.reading.table import Table
from lightning_freeze.data.reading.values import group_name
from lightning_freeze.data.splitting import check_fractions, split_rows
from lightning_freeze.data.unlabelled import LabelColumns, without_label_columns, without_unlabelled
from lightning_freeze.errors import ConfigurationError
from lightning_freeze.module.tasks import Task

# Short texts such as "Good!" stand in most files more than once.
_FEWEST_REPEATED = 10
_SHARE_REPEATED = 0.1


@dataclass(frozen=True)
class Splitting:
    """How one file is split.

    Args:
        fractions: Shares of training, validation and test rows.
        seed: Seed of the split.
        group_column: Rows with the same value in this column stay together; None for none.
    """

    fractions: tuple[float, ...]
    seed: int
    group_column: str | None


class TextFiles:
    """The files of a user, read and checked when they are first needed.

    Args:
        data: The file that is split, or None.
        files: The files by split.
        splitting: How ``data`` is split.
        task: What the data is for.
        given: The columns that the user names.
        labels: The names of the classes, or None.
        empty_text: Whether a row with an empty text is an error or is left out.
    """

    def __init__(
        self,
        data: str | None,
        files: Mapping[str, str],
        splitting: Splitting,
        task: Task,
        given: GivenColumns,
        labels: list[str] | None,
        empty_text: str,
    ) -> None:
        self.data = data
        self.files = files
        self.splitting = splitting
        self.task = task
        self.given = given
        self.labels = labels
        self.empty_text = empty_text

    def check(self) -> None:
        """Check the arguments.

        Raises:
            ConfigurationError: One is wrong.
        """
        check_files(self.data, self.files)
        self.given.check(self.task)
        if self.empty_text not in ("error", "drop"):
            raise ConfigurationError(f"data.empty_text is {self.empty_text!r}: expected 'error' or 'drop'.")
        try:
            check_fractions(self.splitting.fractions)
        except ValueError as error:
            raise ConfigurationError(f"data.{error}") from error

    @cached_property
    def columns(self) -> Columns:
        """The columns of texts and labels.

        Without a name, those of a causal language model are ``text``, else ``prompt`` and ``response``, else
        ``messages``, whichever the first file has.
        """
        existing = next(iter(self._read.values())).columns if self.given.depends_on_file(self.task) else ()
        return self.given.resolve(self.task, existing)

    @cached_property
    def tables(self) -> dict[str, Table]:
        """The rows of each split that there is: ``train``, ``val``, ``test``, ``predict``.

        Raises:
            ConfigurationError: A file is wrong.
        """
        read = dict(self._read)
        tables = self._split(read) if self.data is not None else {}
        for name in self.files:
            tables[name] = self._checked(read[name], name)
        tables = without_unlabelled(tables, self._label_columns())
        del self._read  # rows that were left out are needed no more
        return tables

    @cached_property
    def _read(self) -> dict[str, Table]:
        return read_files(self.data, self.files)

    def _split(self, read: dict[str, Table]) -> dict[str, Table]:
        if "data" not in read:
            tables = {name: table for name, table in read.items() if name not in self.files}
            tables = without_label_columns(tables, self._label_columns())
            return {name: self._checked(table, name) for name, table in tables.items()}
        table = self._checked(read["data"], "data")
        table = without_unlabelled({"train": table}, self._label_columns())["train"]
        tables = split_table(table, self.splitting)
        warn_of_repeated_texts(tables, self.columns.texts)
        return tables

    def _checked(self, table: Table, name: str) -> Table:
        return check_texts(table, self.task, self.columns, self.empty_text == "drop", needs_label=name != "predict")

    def _label_columns(self) -> LabelColumns:
        return LabelColumns(self.task.target, self.columns.label, self.labels)


def check_files(data: str | None, files: Mapping[str, str]) -> None:
    """Check that there is one file that is split, or a file for each split.

    Args:
        data: The file that is split, or None.
        files: The files by split.

    Raises:
        ConfigurationError: There is neither, or both.
    """
    doubled = [name for name in ("train", "val", "test") if name in files]
    if data is not None and doubled:
        raise ConfigurationError(
            f"data.data={data!r} and data.{doubled[0]}={files[doubled[0]]!r} are both given: expected either one file "
            "that is split, or a file for each split."
        )
    if data is None and not files:
        raise ConfigurationError("There are no files: expected data.data, or data.train and the like.")


def read_files(data: str | None, files: Mapping[str, str]) -> dict[str, Table]:
    """Read all files.

    Args:
        data: One file or saved dataset for all splits, or None.
        files: Further files by split.

    Returns:
        The rows by split. Those of ``data`` are ``"data"`` where it has no splits of its own.

    Raises:
        ConfigurationError: A file cannot be read; the message names the line.
    """
    read: dict[str, Table] = {}
    if data is not None:
        found = splits_of_dataset(data)
        read = {name: read_table(data, split) for name, split in found.items()}
        if not found:
            read["data"] = read_table(data, next(iter(saved_splits(data)), None))
    return {**read, **{name: read_table(file, split_of_file(file, name)) for name, file in files.items()}}


def split_table(table: Table, splitting: Splitting) -> dict[str, Table]:
    """Split the rows of a file into training, validation and test.

    Args:
        table: The rows.
        splitting: How they are split.

    Raises:
        ConfigurationError: There is no such column, or a split would be empty.
    """
    groups, column = None, splitting.group_column
    if column is not None:
        table.require(column, "data.group_column")
        groups = [group_name(row.get(column)) for row in table.rows]
    try:
        parts = split_rows(len(table), splitting.fractions, splitting.seed, groups)
    except ValueError as error:
        raise ConfigurationError(f"{table.name}: data.{error}") from error
    return {name: table.take(rows) for name, rows in zip(SPLITS, parts, strict=True) if rows}


def warn_of_repeated_texts(tables: Mapping[str, Table], columns: Sequence[str]) -> None:
    """Warn where many rows that are evaluated have a text that also trains: their scores do not show generalisation.

    Args:
        tables: The splits of a file.
        columns: The columns that make up a text.
    """
    if "train" not in tables:
        return
    trained = {_text_of(row, columns) for row in tables["train"].rows}
    found = {}
    for name, table in tables.items():
        repeated = sum(_text_of(row, columns) in trained for row in table.rows) if name != "train" else 0
        if repeated >= max(_FEWEST_REPEATED, _SHARE_REPEATED * len(table)):
            found[name] = f"{repeated} of {len(table)} {name} rows"
    if found:
        rank_zero_warn(
            f"{tables['train'].name}: {' and '.join(found.values())} have a text that is also in the training rows, so "
            "scores show in part what the model remembers. Expected a file with each text once, or data.group_column "
            "with a column that has one value for all rows of a text."
        )


def _text_of(row: Mapping[str, Any], columns: Sequence[str]) -> int:
    return hash(repr([row.get(column) for column in columns]))
