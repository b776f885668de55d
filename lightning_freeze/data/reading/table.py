"""The rows of one file or split, with their positions in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lightning_freeze.data.reading.values import text_value, word_list
from lightning_freeze.errors import ConfigurationError, listing, suggest


@dataclass(frozen=True)
class Table:
    """The rows of one file.

    Args:
        name: The file, as the user named it, and the split where it has several.
        columns: The names of its columns.
        rows: One mapping from column to value each.
        numbers: For each row, where it stands in the file (line or row number, from 1).
        unit: What the numbers count: ``"line"`` or ``"row"``.
        fixed_tags: For token classification, the tags of words that no model sees: row, position of the word, tag.
        class_columns: Columns that ``datasets`` declares to hold classes; there, -1 means that a row has no label.
    """

    name: str
    columns: tuple[str, ...]
    rows: Sequence[dict[str, Any]]
    numbers: Sequence[int]
    unit: str = "line"
    class_columns: frozenset[str] = frozenset()
    fixed_tags: Mapping[int, Mapping[int, str | None]] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.rows)

    def where(self, index: int) -> str:
        """Return the position of a row, for messages.

        Args:
            index: Position of the row in this table.
        """
        return f"{self.name}, {self.unit} {self.numbers[index]}"

    def error(self, index: int, column: str, problem: object) -> ConfigurationError:
        """Return the error of one field.

        Args:
            index: Position of the row in this table.
            column: The column of the field.
            problem: What the field is and what was expected, for example ``"is 7, expected text"``.
        """
        return ConfigurationError(f"{self.where(index)}: {column!r} {problem}.")

    def text(self, index: int, column: str, words: bool = False) -> str:
        """Return the text of one field.

        Args:
            index: Position of the row in this table.
            column: The column of the field.
            words: Whether the field holds a list of words, which are joined with spaces.

        Raises:
            ConfigurationError: The field holds something else; the message names the row.
        """
        value = self.rows[index].get(column)
        try:
            return " ".join(word_list(value)) if words else text_value(value)
        except ValueError as error:
            raise self.error(index, column, error) from error

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
