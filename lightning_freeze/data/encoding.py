"""Rows into token ids and labels."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from rich.progress import track
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lightning_freeze.data.labels import is_missing
from lightning_freeze.data.readers import Table
from lightning_freeze.errors import ConfigurationError
from lightning_freeze.module.hub import NO_REMOTE_CODE, advice, resolve
from lightning_freeze.module.tasks import IGNORE_INDEX, Task

Example = dict[str, Any]
"""One example: ``input_ids`` (and ``token_type_ids``) as 1-d tensors, ``labels`` if known, ``index``."""

DEFAULT_MAX_LENGTH = 512
_CHUNK = 1000
_FILES = ("tokenizer", "vocab", "spiece", "sentencepiece", "merges")


@dataclass(frozen=True)
class Columns:
    """The columns of one task's data.

    Args:
        text: The text, the source, or the list of tokens.
        text_pair: The second text of a pair.
        label: The label columns, the target text, or the list of tags.
    """

    text: str
    text_pair: str | None
    label: tuple[str, ...]


def load_tokenizer(name: str, task: Task) -> PreTrainedTokenizerBase:
    """Load a tokenizer, with a padding token if it lacks one.

    Args:
        name: A local folder, or a model's name on the Hugging Face hub.
        task: The task that it is for.

    Raises:
        ConfigurationError: There is no such tokenizer, or it cannot do what the task needs.
    """
    source, where = resolve(name, "tokenizer")
    folder = Path(source)
    if folder.is_dir() and not any(file.name.startswith(_FILES) or file.suffix == ".gguf" for file in folder.iterdir()):
        raise ConfigurationError(
            f"The folder {name!r} holds no tokenizer: expected tokenizer.json or a vocabulary, as "
            f"tokenizer.save_pretrained writes them. Name another folder with data.tokenizer."
        )
    # Byte-level tokenizers split lists of words correctly only with a space before each.
    settings = {"add_prefix_space": True} if task.target == "token" else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **where, **NO_REMOTE_CODE, **settings)
    except (OSError, ValueError, KeyError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigurationError(f"The tokenizer {name!r} could not be loaded: {first} {advice(name)}") from error
    if task.target == "token" and not tokenizer.is_fast:
        raise ConfigurationError(
            f"Task {task.name!r} needs a fast tokenizer, which tells what word a token belongs to, and the one of "
            f"{name!r} is slow: expected a folder with tokenizer.json."
        )
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise ConfigurationError(
                f"The tokenizer {name!r} has neither a padding nor an end token: expected tokenizer.pad_token to be "
                "set and saved with tokenizer.save_pretrained."
            )
        # module/special_tokens.py makes the same choice for the model.
        tokenizer.pad_token = tokenizer.eos_token
    loaded: PreTrainedTokenizerBase = tokenizer
    return loaded


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
        ConfigurationError: A column is missing, a row has an empty text, or no row is left.
    """
    table.require(columns.text, "data.text")
    if columns.text_pair is not None:
        table.require(columns.text_pair, "data.text_pair")
    if needs_label and task.target != "next-token":
        for column in columns.label:
            table.require(column, "data.label")
    required = [columns.text]
    required += [columns.text_pair] if columns.text_pair is not None else []
    required += list(columns.label) if needs_label and task.target == "target-token" else []
    kept = []
    for i, row in enumerate(table.rows):
        empty = next((column for column in required if _is_empty(row.get(column))), None)
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


def encode(
    table: Table,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    columns: Columns,
    max_length: int | None,
    labels: Sequence[Any] | None,
    for_prediction: bool = False,
) -> list[Example]:
    """Tokenise a table, with a progress bar if it takes long.

    Args:
        table: The rows; their texts have been checked.
        tokenizer: Any tokenizer of transformers.
        task: What the rows are for.
        columns: Where text and label stand.
        max_length: Longer texts are cut to so many tokens; None for what the tokenizer allows, at most 512.
        labels: The label of each row as :func:`encode_labels` returns it; None for language models and predictions.
        for_prediction: Whether a causal language model is to continue the texts, so that they do not end.

    Returns:
        One example per row; ``index`` is the row's position in the table.
    """
    limit = max_length or min(int(tokenizer.model_max_length), DEFAULT_MAX_LENGTH)
    examples: list[Example] = []
    for start in _chunks(table):
        rows = range(start, min(start + _CHUNK, len(table)))
        if task.target == "token":
            chunk = _encode_words(table, rows, tokenizer, columns, limit, labels)
        else:
            chunk = _encode_texts(table, rows, tokenizer, columns, limit)
            _add_labels(chunk, table, rows, tokenizer, task, columns, limit, labels, for_prediction)
        for row, example in zip(rows, chunk, strict=True):
            example["index"] = row
        examples += chunk
    return examples


def _encode_texts(
    table: Table, rows: range, tokenizer: PreTrainedTokenizerBase, columns: Columns, limit: int
) -> list[Example]:
    texts = [str(table.rows[i][columns.text]) for i in rows]
    pairs = None if columns.text_pair is None else [str(table.rows[i][columns.text_pair]) for i in rows]
    encoded = tokenizer(texts, pairs, truncation=True, max_length=limit, padding=False, return_attention_mask=False)
    return [{key: _ids(values[i]) for key, values in encoded.items()} for i in range(len(texts))]


def _add_labels(
    chunk: list[Example],
    table: Table,
    rows: range,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    columns: Columns,
    limit: int,
    labels: Sequence[Any] | None,
    for_prediction: bool,
) -> None:
    if for_prediction:
        return
    if task.target == "next-token":
        for example in chunk:
            example["input_ids"] = _ended(example["input_ids"], tokenizer.eos_token_id, limit)
            example["labels"] = example["input_ids"]
            example.pop("token_type_ids", None)
    elif task.target == "target-token":
        targets = [str(table.rows[i][columns.label[0]]) for i in rows]
        encoded = tokenizer(text_target=targets, truncation=True, max_length=limit, padding=False)
        for example, ids in zip(chunk, encoded["input_ids"], strict=True):
            example["labels"] = _ids(ids)
    elif labels is not None:
        dtype = torch.long if task.target == "class" else torch.float
        for i, example in zip(rows, chunk, strict=True):
            example["labels"] = torch.tensor(labels[i], dtype=dtype)


def _encode_words(
    table: Table,
    rows: range,
    tokenizer: PreTrainedTokenizerBase,
    columns: Columns,
    limit: int,
    labels: Sequence[Any] | None,
) -> list[Example]:
    """Tokenise lists of words; the first piece of a word carries its label, the others none."""
    words = [_words(table, i, columns, labels) for i in rows]
    encoded = tokenizer(words, is_split_into_words=True, truncation=True, max_length=limit, padding=False)
    examples = []
    for position, row in enumerate(rows):
        example = {key: _ids(values[position]) for key, values in encoded.items() if key != "attention_mask"}
        # Without labels, zeros still say where each word begins: a prediction is one tag per word, not per piece.
        tags, before = [], None
        for word in encoded.word_ids(position):
            begins = word is not None and word != before
            tags.append(IGNORE_INDEX if not begins else 0 if labels is None else labels[row][word])
            before = word
        example["labels"] = _ids(tags)
        examples.append(example)
    return examples


def _words(table: Table, i: int, columns: Columns, labels: Sequence[Any] | None) -> list[str]:
    words = table.rows[i][columns.text]
    if not isinstance(words, (list, tuple)):
        raise ConfigurationError(
            f"{table.where(i)}: {columns.text!r} is {words!r}, expected a list of tokens (JSONL or Parquet)."
        )
    if labels is not None and len(labels[i]) != len(words):
        raise ConfigurationError(
            f"{table.where(i)}: {len(words)} tokens in {columns.text!r}, but {len(labels[i])} tags in "
            f"{columns.label[0]!r}: expected one tag for each token."
        )
    return [str(word) for word in words]


def _ended(ids: Tensor, end: int | None, limit: int) -> Tensor:
    if end is None or int(ids[-1]) == end:
        return ids
    return torch.cat([ids[: limit - 1], ids.new_tensor([end])])


def _ids(values: Sequence[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def _is_empty(value: Any) -> bool:
    return len(value) == 0 if isinstance(value, (list, tuple)) else is_missing(value)


def _chunks(table: Table) -> Iterator[int]:
    starts = range(0, len(table), _CHUNK)
    quiet = len(starts) < 5 or getattr(rank_zero_only, "rank", 0) != 0 or not sys.stderr.isatty()
    yield from track(starts, description=f"Tokenising {table.name}", disable=quiet, transient=True)
