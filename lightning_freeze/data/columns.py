"""Which columns of a file hold what, and the checks of their texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from lightning_freeze.data.language_models.messages import has_empty_response, last_response, read_messages
from lightning_freeze.data.reading.table import Table
from lightning_freeze.data.reading.values import is_empty
from lightning_freeze.errors import ConfigurationError
from lightning_freeze.module.tasks import Task

_DEFAULTS = {"token": ("tokens", "tags"), "target-token": ("source", "target")}


@dataclass(frozen=True)
class Columns:
    """The columns of one task's data.

    Args:
        text: The text, the source, or the list of tokens.
        text_pair: The second text of a pair.
        label: The label columns, the target text, or the list of tags.
        prompt: What a language model reads before its response; it is given in place of ``text``.
        response: What it learns to write.
        messages: A conversation; it is given in place of ``text``.
    """

    text: str
    text_pair: str | None
    label: tuple[str, ...]
    prompt: str | None = None
    response: str | None = None
    messages: str | None = None

    @property
    def has_responses(self) -> bool:
        """Whether a language model learns responses rather than whole texts."""
        return self.prompt is not None or self.messages is not None

    @property
    def inputs(self) -> tuple[str, ...]:
        """The columns that a model reads when it predicts."""
        if self.has_responses:
            return tuple(column for column in (self.prompt, self.messages) if column is not None)
        return (self.text,) if self.text_pair is None else (self.text, self.text_pair)

    @property
    def texts(self) -> tuple[str, ...]:
        """The columns that a model reads when it trains."""
        return self.inputs if self.response is None else (*self.inputs, self.response)


@dataclass(frozen=True)
class GivenColumns:
    """The columns as the arguments of :class:`TextDataModule` name them; None where they are not given.

    Args:
        text: As in :class:`Columns`.
        text_pair: As in :class:`Columns`.
        label: One column or several.
        prompt: As in :class:`Columns`.
        response: As in :class:`Columns`.
        messages: As in :class:`Columns`.
    """

    text: str | None = None
    text_pair: str | None = None
    label: str | list[str] | None = None
    prompt: str | None = None
    response: str | None = None
    messages: str | None = None

    def depends_on_file(self, task: Task) -> bool:
        """Whether the columns of a file decide between a text, a prompt with its response, and messages.

        Args:
            task: What the data is for.
        """
        named = (self.text, self.prompt, self.response, self.messages)
        return task.target == "next-token" and all(name is None for name in named)

    def resolve(self, task: Task, existing: Sequence[str] = ()) -> Columns:
        """Return the columns, with defaults where none are given.

        Args:
            task: What the data is for.
            existing: The columns of the file, where they decide.
        """
        prompt, response, messages = self.prompt, self.response, self.messages
        if self.depends_on_file(task) and "text" not in existing:
            if "prompt" in existing:
                prompt = "prompt"
            elif "messages" in existing:
                messages = "messages"
        if prompt is not None or response is not None:
            prompt, response = prompt or "prompt", response or "response"
        default_text, default_label = _DEFAULTS.get(task.target, ("text", "label"))
        label = [default_label] if self.label is None else [self.label] if isinstance(self.label, str) else self.label
        text = default_text if self.text is None else self.text
        return Columns(text, self.text_pair, tuple(label), prompt, response, messages)

    def check(self, task: Task) -> None:
        """Check that the columns fit the task and each other.

        Args:
            task: What the data is for.

        Raises:
            ConfigurationError: They do not; the message names the arguments.
        """
        named = {"text": self.text, "text_pair": self.text_pair, "prompt": self.prompt, "response": self.response}
        named["messages"] = self.messages
        given = {name: value for name, value in named.items() if value is not None}
        _check_conversation(given, task)
        columns = self.resolve(task)
        text = [] if columns.has_responses else [columns.text]
        # A language model that writes on has no label unless one is named, to be refused below.
        labels = () if task.target == "next-token" and self.label is None else columns.label
        names = [*text, *labels, *(value for name, value in given.items() if name != "text")]
        if "" in names:
            listed = ", ".join(f"data.{name}" for name in [*given, "label"] if name != "text")
            raise ConfigurationError(
                "A column has an empty name: expected data.text, data.text_pair and data.label, or null."
                if not columns.has_responses
                else f"A column has an empty name: expected {listed}, or null."
            )
        repeated = [name for name, count in Counter(names).items() if count > 1]
        if repeated:
            kinds = "data.prompt, data.response" if columns.has_responses else "data.text, data.text_pair"
            raise ConfigurationError(
                f"The column {repeated[0]!r} is given twice: expected another one for each of {kinds} and data.label."
            )
        if task.name == "pair-classification" and columns.text_pair is None:
            raise ConfigurationError(
                "Task 'pair-classification' needs two texts: expected data.text_pair, the column of the second one."
            )
        if len(columns.label) != 1 and task.target != "multilabel":
            raise ConfigurationError(
                f"data.label is {list(columns.label)}: expected one column for {task.name!r}; several are for the "
                "task 'multilabel'."
            )


def check_texts(table: Table, task: Task, columns: Columns, drop_empty: bool, needs_label: bool) -> Table:
    """Check the columns and the texts of a table.

    Args:
        table: The rows.
        task: What they are for.
        columns: The columns that must be there.
        drop_empty: Whether rows with an empty text are left out, or are errors.
        needs_label: Whether the label columns must be there too.

    Returns:
        The table, without the rows that were dropped.

    Raises:
        ConfigurationError: A column is missing, a row has an empty text or something else than text, or no row is
            left.
    """
    required = _required(table, task, columns, needs_label)
    kept = []
    for i, row in enumerate(table.rows):
        empty = next((column for column in required if is_empty(row.get(column), task.target == "token")), None)
        if empty is None and columns.messages is not None:
            empty = _checked_messages(table, i, columns.messages, needs_label)
        elif empty is None:
            for column in required:
                table.text(i, column, words=task.target == "token")
        if empty is None:
            kept.append(i)
        elif not drop_empty:
            raise ConfigurationError(
                f"{table.where(i)}: the text {empty!r} is empty: expected some text, or data.empty_text='drop' to "
                "leave such rows out."
            )
    if not kept:
        raise ConfigurationError(f"{table.name}: the text is empty in all rows: expected some text.")
    return table if len(kept) == len(table) else table.take(kept)


def _required(table: Table, task: Task, columns: Columns, needs_label: bool) -> list[str]:
    """Check that the columns are there, and return those in which each row must have a text."""
    if columns.has_responses:
        named = {"messages": columns.messages, "prompt": columns.prompt}
        named["response"] = columns.response if needs_label else None
        required = {f"data.{name}": column for name, column in named.items() if column is not None}
        for argument, column in required.items():
            table.require(column, argument)
        return list(required.values())
    table.require(columns.text, "data.text")
    if columns.text_pair is not None:
        table.require(columns.text_pair, "data.text_pair")
    if needs_label and task.target != "next-token":
        for column in columns.label:
            table.require(column, "data.label")
    targets = columns.label if needs_label and task.target == "target-token" else ()
    return [*columns.inputs, *targets]


def _checked_messages(table: Table, i: int, column: str, needs_response: bool) -> str | None:
    """Check the messages of a row, and return the column if the response is empty."""
    try:
        messages = read_messages(table.rows[i].get(column))
    except ValueError as error:
        raise table.error(i, column, error) from error
    if needs_response and last_response(messages) is None:
        raise table.error(i, column, "has no message of the role 'assistant', expected at least one")
    return column if needs_response and has_empty_response(messages) else None


def _check_conversation(given: dict[str, str], task: Task) -> None:
    """Check the arguments for prompts, responses and messages against the task and the other texts."""
    own = [name for name in ("prompt", "response", "messages") if name in given]
    if not own:
        return
    if task.target != "next-token":
        instead = "data.text and data.label" if task.target == "target-token" else "data.text"
        raise ConfigurationError(
            f"data.{own[0]}={given[own[0]]!r} is for the task 'causal-lm': expected {instead} for {task.name!r}."
        )
    others: list[str] = [name for name in ("text", "text_pair") if name in given]
    others += [name for name in own[:-1] if own[-1] == "messages"]
    if others:
        raise ConfigurationError(
            f"data.{others[0]}={given[others[0]]!r} and data.{own[-1]}={given[own[-1]]!r} are both given: expected a "
            "text, or a prompt and a response, or messages."
        )
