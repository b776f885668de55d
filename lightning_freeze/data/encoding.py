"""Rows into token ids and labels."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only
from rich.progress import track
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lightning_freeze.data.columns import Columns, check_texts
from lightning_freeze.data.language_models.conversations import encode_conversations
from lightning_freeze.data.reading.table import Table
from lightning_freeze.data.tokenizer import adds_end_token, check_length, load_tokenizer
from lightning_freeze.data.words import encode_words
from lightning_freeze.errors import ConfigurationError
from lightning_freeze.module.tasks import Task

__all__ = ["Columns", "Example", "check_texts", "encode", "load_tokenizer"]

Example = dict[str, Any]
"""One example: ``input_ids`` (and ``token_type_ids``) as 1-d tensors, ``labels`` if known, ``index``."""

DEFAULT_MAX_LENGTH = 512
_CHUNK = 1000


def encode(
    table: Table,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    columns: Columns,
    max_length: int | None,
    labels: Sequence[Any] | None,
    for_prediction: bool = False,
    positions: int | None = None,
    unread: dict[int, list[int]] | None = None,
) -> list[Example]:
    """Tokenise a table, with a progress bar if it takes long.

    Args:
        table: The rows; their texts have been checked.
        tokenizer: Any tokenizer of transformers.
        task: What the rows are for.
        columns: Where text and label stand.
        max_length: Longer texts are cut to so many tokens, and longer lists of words into windows; None for what the
            tokenizer and the model allow, at most 512.
        labels: The label of each row as :func:`encode_labels` returns it; None for language models and predictions.
        for_prediction: Whether the rows are to be predicted. A causal language model continues a text, which therefore
            has no end token and, if it is too long, keeps its last tokens.
        positions: How many tokens the model can read, where that is known.
        unread: Filled with the words that the tokenizer drops, by row, for token classification.

    Returns:
        Examples in the order of the rows, whose position in the table is ``index``: one for each row, or several for
        the rows of token classification that are longer than ``max_length``.

    Raises:
        ConfigurationError: A row has no tokens, or ``max_length`` leaves no room for a text.
    """
    limit = token_limit(tokenizer, max_length, positions)
    prompts = for_prediction and task.target == "next-token"
    if prompts and positions is not None:
        limit = min(limit, positions)
    check_length(tokenizer, limit, pair=columns.text_pair is not None)
    if columns.has_responses:
        names = (columns.prompt, columns.response, columns.messages)
        return encode_conversations(table, tokenizer, *names, limit, for_prediction, _chunks(table))
    examples: list[Example] = []
    plain: list[int] = []
    unread = {} if unread is None else unread
    for rows in _chunks(table):
        if task.target == "token":
            chunk, dropped = encode_words(table, rows, tokenizer, columns.text, limit, labels, columns.label[0])
            examples += chunk
            unread.update(dropped)
            continue
        with _truncating("left" if prompts else tokenizer.truncation_side, tokenizer):
            chunk = _encode_texts(table, rows, tokenizer, task, columns, limit, plain)
        _check_tokens(chunk, "input_ids", table, rows, 1)
        _add_labels(chunk, table, rows, tokenizer, task, columns, limit, labels, for_prediction)
        if task.is_language_model and not for_prediction:
            # Causal models predict the second token from the first.
            _check_tokens(chunk, "labels", table, rows, 2 if task.target == "next-token" else 1)
        for row, example in zip(rows, chunk, strict=True):
            example["index"] = row
        examples += chunk
    if not examples:
        raise ConfigurationError(
            f"{table.name}: the tokenizer knows no word of any row that has a label: expected text."
        )
    if plain:
        rank_zero_info(
            f"{table.name}: {len(plain)} texts contain the padding or end token of the tokenizer, which is read as "
            f"plain text there (first at {table.unit} {table.numbers[plain[0]]})."
        )
    return examples


def token_limit(tokenizer: PreTrainedTokenizerBase, max_length: int | None, positions: int | None) -> int:
    """Return the most tokens of an example.

    Args:
        tokenizer: The tokenizer, which may know what its model can read.
        max_length: The limit that the user asks for, or None.
        positions: How many tokens the model can read, where that is known.
    """
    return max_length or min(int(tokenizer.model_max_length), DEFAULT_MAX_LENGTH, positions or DEFAULT_MAX_LENGTH)


@contextmanager
def _truncating(side: str, tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    before, tokenizer.truncation_side = tokenizer.truncation_side, side
    try:
        yield
    finally:
        tokenizer.truncation_side = before


def _encode_texts(
    table: Table,
    rows: range,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    columns: Columns,
    limit: int,
    plain: list[int],
) -> list[Example]:
    texts = [table.text(i, columns.text) for i in rows]
    pairs = None if columns.text_pair is None else [table.text(i, columns.text_pair) for i in rows]
    options = {"truncation": True, "max_length": limit, "padding": False, "return_attention_mask": False}
    encoded = tokenizer(texts, pairs, **options)
    examples = [{key: _ids(values[i]) for key, values in encoded.items()} for i in range(len(texts))]
    # A padding or end token inside a text would change where the model pools, or be one too many (BART).
    markers = [token for token in (tokenizer.pad_token, tokenizer.eos_token) if token] if task.pooled else []
    for i, row in enumerate(rows):
        both = (texts[i],) if pairs is None else (texts[i], pairs[i])
        if any(token in text for token in markers for text in both):
            single = tokenizer(*both, split_special_tokens=True, **options)
            examples[i] = {key: _ids(values) for key, values in single.items()}
            plain.append(row)
    return examples


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
        if task.target == "next-token" and adds_end_token(tokenizer):
            for example in chunk:
                _reopen(example, tokenizer.eos_token_id)
        return
    if task.target == "next-token":
        for row, example in zip(rows, chunk, strict=True):
            example["input_ids"] = _ended(example["input_ids"], table.text(row, columns.text), tokenizer, limit)
            example["labels"] = example["input_ids"]
            example.pop("token_type_ids", None)
    elif task.target == "target-token":
        targets = [table.text(i, columns.label[0]) for i in rows]
        encoded = tokenizer(text_target=targets, truncation=True, max_length=limit, padding=False)
        for example, ids in zip(chunk, encoded["input_ids"], strict=True):
            example["labels"] = _ids(ids)
    elif labels is not None:
        dtype = torch.long if task.target == "class" else torch.float
        for i, example in zip(rows, chunk, strict=True):
            example["labels"] = torch.tensor(labels[i], dtype=dtype)


def _check_tokens(chunk: list[Example], key: str, table: Table, rows: range, least: int) -> None:
    for row, example in zip(rows, chunk, strict=True):
        if len(example[key]) < least:
            raise ConfigurationError(
                f"{table.where(row)}: the tokenizer finds {len(example[key])} tokens in the text: expected at least "
                f"{least}."
            )


def _ended(ids: Tensor, text: str, tokenizer: PreTrainedTokenizerBase, limit: int) -> Tensor:
    """Return the tokens of a text and its end token, unless its end was cut: the model must not learn to end there."""
    end = tokenizer.eos_token_id
    if end is None or len(ids) > limit:
        return ids
    ends = bool(len(ids)) and int(ids[-1]) == end
    if len(ids) < limit:
        return ids if ends else torch.cat([ids, ids.new_tensor([end])])
    cut_left = tokenizer.truncation_side == "left"
    # Of most tokenizers, which add no end and cut the right, nothing has to be read again.
    if ends == cut_left or len(tokenizer(text, verbose=False)["input_ids"]) <= limit:
        return ids
    if not cut_left:
        return ids[:-1]
    start = int(ids[0] == tokenizer.bos_token_id)
    return torch.cat([ids[:start], ids[start + 1 :], ids.new_tensor([end])])


def _reopen(example: Example, end: int | None) -> None:
    """Remove the end token that a tokenizer adds to each text: a model generates nothing after it."""
    if end is not None and len(example["input_ids"]) > 1 and int(example["input_ids"][-1]) == end:
        for key in example:
            example[key] = example[key][:-1]


def _ids(values: Sequence[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def _chunks(table: Table) -> Iterator[range]:
    starts = range(0, len(table), _CHUNK)
    quiet = len(starts) < 5 or getattr(rank_zero_only, "rank", 0) != 0 or not sys.stderr.isatty()
    for start in track(starts, description=f"Tokenising {table.name}", disable=quiet, transient=True):
        yield range(start, min(start + _CHUNK, len(table)))
