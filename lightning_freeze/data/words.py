"""Converts lists of words into token ids, so that every word of a row gets its tag.

A word that the tokenizer drops (a zero-width space) has no token to predict a tag from: it is left out of training and
evaluation, and its prediction is the tag ``O``. A row that is longer than the model reads is cut into windows that
overlap; each word counts in one window, where it has words on both sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from lightning_freeze.data.reading.table import Table
from lightning_freeze.data.reading.values import word_list
from lightning_freeze.errors import ConfigurationError
from lightning_freeze.module.tasks import IGNORE_INDEX


@dataclass(frozen=True)
class Window:
    """A span of words that is encoded as one example.

    Args:
        start: Its first word.
        stop: The word after its last.
        first: The first word that counts here; those before are context.
        last: The word after the last that counts here.
    """

    start: int
    stop: int
    first: int
    last: int


def windows(pieces: Sequence[int], budget: int) -> list[Window]:
    """Cut a row into windows. Neighbours share about a quarter of the budget, and each word counts in one of them.

    Args:
        pieces: The number of tokens of each word.
        budget: The most tokens in a window; longer words count as this many.
    """
    counts = [min(count, budget) for count in pieces]
    spans: list[tuple[int, int]] = []
    start = stop = 0
    while stop < len(counts):
        used = 0
        stop = start
        while stop < len(counts) and used + counts[stop] <= budget:
            used += counts[stop]
            stop += 1
        spans.append((start, stop))
        if stop == len(counts):
            break
        # The next window must hold at least one more word, so that it moves on.
        room = min(budget // 4, budget - counts[stop])
        start = stop
        while start - 1 > spans[-1][0] and counts[start - 1] <= room:
            room -= counts[start - 1]
            start -= 1
    ends = [(after[0] + before[1] + 1) // 2 for before, after in pairwise(spans)]
    firsts, lasts = [0, *ends], [*ends, len(counts)]
    return [Window(*span, first, last) for span, first, last in zip(spans, firsts, lasts, strict=True)]


def encode_words(
    table: Table,
    rows: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    column: str,
    limit: int,
    labels: Sequence[Any] | None,
    label_column: str = "tags",
) -> tuple[list[dict[str, Any]], dict[int, list[int]]]:
    """Tokenise lists of words; the first piece of a word carries its label, the others none.

    Args:
        table: The rows.
        rows: Positions of the rows to encode.
        tokenizer: A fast tokenizer.
        column: Where the words stand.
        limit: The most tokens in an example; longer rows become several examples.
        labels: The label of each word of each row of the table. Without labels, zeros say where each word begins.
        label_column: Where the labels stand, for messages.

    Returns:
        Examples in the order of the rows and, within a row, of its words; ``index`` is the row. And for each row the
        positions of the words that the tokenizer drops. A row of such words alone, or of words without a label, has an
        example for prediction only.

    Raises:
        ConfigurationError: A field is no list of words, or the numbers of words and labels differ.
    """
    words = [_words(table, i, column, labels, label_column) for i in rows]
    counts = _counts(tokenizer, words)
    dropped = {
        row: [word for word, count in enumerate(row_counts) if count == 0]
        for row, row_counts in zip(rows, counts, strict=True)
        if 0 in row_counts
    }
    budget = limit - tokenizer.num_special_tokens_to_add()
    spans = [
        (place, window)
        for place, row_counts in enumerate(counts)
        for window in windows(row_counts, budget)
        if labels is None or any(row_counts)
    ]
    if not spans:
        return [], dropped
    # A prediction needs at least one token; its tag is not used.
    texts = [
        words[place][window.start : window.stop] if any(counts[place]) else [_any_word(tokenizer)]
        for place, window in spans
    ]
    encoded = tokenizer(texts, is_split_into_words=True, truncation=True, max_length=limit, padding=False)
    examples = []
    for position, (place, window) in enumerate(spans):
        row = rows[place]
        tags = [0] * len(words[place]) if labels is None else labels[row]
        example: dict[str, Any] = {
            key: torch.tensor(values[position], dtype=torch.int32)
            for key, values in encoded.items()
            if key != "attention_mask"
        }
        piece_labels = _piece_labels(encoded.word_ids(position), window, tags)
        if not any(counts[place]):
            piece_labels = [IGNORE_INDEX] * len(piece_labels)
        if labels is not None and set(piece_labels) == {IGNORE_INDEX}:
            continue  # nothing to learn or to count; the loss of a batch of such examples would be NaN
        example["labels"] = torch.tensor(piece_labels, dtype=torch.int32)
        example["index"] = row
        examples.append(example)
    return examples, dropped


def _piece_labels(word_ids: Sequence[int | None], window: Window, tags: Sequence[int]) -> list[int]:
    result, before = [], None
    for piece in word_ids:
        word = None if piece is None else window.start + piece
        counts = word is not None and word != before and window.first <= word < window.last
        result.append(tags[word] if counts and word is not None else IGNORE_INDEX)
        before = word
    return result


def _counts(tokenizer: PreTrainedTokenizerBase, words: Sequence[list[str]]) -> list[list[int]]:
    encoded = tokenizer(list(words), is_split_into_words=True, add_special_tokens=False, verbose=False)
    result = []
    for position, row in enumerate(words):
        counts = [0] * len(row)
        for word in encoded.word_ids(position):
            if word is not None:
                counts[word] += 1
        result.append(counts)
    return result


def _any_word(tokenizer: PreTrainedTokenizerBase) -> str:
    for text in (tokenizer.unk_token, ".", "a", tokenizer.pad_token):
        if text and _counts(tokenizer, [[str(text)]])[0][0]:
            return str(text)
    raise ConfigurationError("The tokenizer has no token for unknown words: expected tokenizer.unk_token to be set.")


def _words(table: Table, i: int, column: str, labels: Sequence[Any] | None, label_column: str) -> list[str]:
    try:
        words = word_list(table.rows[i].get(column))
    except ValueError as error:
        raise table.error(i, column, error) from error
    if labels is not None and len(labels[i]) != len(words):
        raise ConfigurationError(
            f"{table.where(i)}: {len(words)} tokens in {column!r}, but {len(labels[i])} tags in {label_column!r}: "
            f"expected one tag for each token."
        )
    return words
