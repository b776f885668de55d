"""Splits a batch into inputs and labels, and finds the logits in the output of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_freeze.errors import ConfigurationError
from lightning_freeze.module.tasks import IGNORE_INDEX

_ABOUT_TOKENS = ("word_ids", "offset_mapping", "special_tokens_mask")


def unpack(batch: Any) -> tuple[dict[str, Any], Tensor | None]:
    """Split a batch into model inputs and labels.

    Args:
        batch: A mapping with the key ``labels`` (or ``label``), or a pair of inputs and labels, or the inputs alone.

    Raises:
        ConfigurationError: It is none of these.
    """
    labels: Tensor | None = None
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        batch, labels = batch
    if isinstance(batch, Tensor):
        return {"pixel_values" if batch.is_floating_point() else "input_ids": batch}, labels
    if not isinstance(batch, Mapping):
        raise ConfigurationError(
            f"The batch is a {type(batch).__name__}: expected a dict of tensors or a pair (inputs, labels)."
        )
    inputs = {key: value for key, value in batch.items() if key not in _ABOUT_TOKENS}
    for key in ("labels", "label"):
        found = inputs.pop(key, None)
        labels = found if labels is None else labels
    return inputs, labels


def word_starts(batch: Any) -> list[list[int | None]] | None:
    """Return the position at which each word of a batch of tokens begins.

    The sources, the most reliable first: ``labels``, which are -100 except at the first token of each word; the
    ``word_ids()`` of what a fast tokenizer returned; ``word_ids`` ``(batch, sequence)``, the word of each token, and
    None or a negative number for special tokens and padding; ``offset_mapping`` ``(batch, sequence, 2)``, in which the
    tokens of one word follow each other without a gap. Else every token that ``special_tokens_mask`` and
    ``attention_mask`` leave over counts as a word.

    Args:
        batch: As :func:`unpack` takes it.

    Returns:
        For each row one position for each word, in order, and None for a word without a token; None if the batch has
        none of these.
    """
    inputs, labels = unpack(batch)
    source = batch[0] if isinstance(batch, (tuple, list)) else batch
    if labels is not None:
        return _positions(labels != IGNORE_INDEX)
    if isinstance(source, Mapping) and (words := _word_ids(source)) is not None:
        return [_starts(row) for row in words]
    mask = inputs.get("attention_mask")
    if isinstance(source, Mapping) and "special_tokens_mask" in source:
        ordinary = torch.as_tensor(source["special_tokens_mask"]) == 0
        return _positions(ordinary if mask is None else ordinary & (mask != 0))
    return None if mask is None else _positions(mask != 0)


def _word_ids(batch: Mapping[str, Any]) -> list[list[int | None]] | None:
    """Return the word of each token, None where there is none."""
    if "word_ids" in batch:
        rows = batch["word_ids"]
        return [
            [None if word is None or word < 0 else int(word) for word in row]
            for row in (rows.tolist() if isinstance(rows, Tensor) else rows)
        ]
    encodings = getattr(batch, "encodings", None)
    if encodings:
        return [encoding.word_ids for encoding in encodings]
    if "offset_mapping" in batch:
        return [_words_of_offsets(row) for row in torch.as_tensor(batch["offset_mapping"]).tolist()]
    return None


def _words_of_offsets(row: Sequence[Sequence[int]]) -> list[int | None]:
    words: list[int | None] = []
    word, end = -1, None
    for start, stop in row:
        if start == stop:  # a special token
            words.append(None)
            end = None
            continue
        word += start != end
        end = stop
        words.append(word)
    return words


def _starts(words: Sequence[int | None]) -> list[int | None]:
    first: dict[int, int] = {}
    for position, word in enumerate(words):
        if word is not None:
            first.setdefault(word, position)
    return [first.get(word) for word in range(max(first, default=-1) + 1)]


def _positions(kept: Tensor) -> list[list[int | None]]:
    return [[position for position, here in enumerate(row) if here] for row in kept.tolist()]


def logits_of(output: Any) -> Tensor:
    """Return the logits in a model's output.

    Args:
        output: A tensor, or an output of transformers with ``logits``.

    Raises:
        ConfigurationError: It is neither.
    """
    if isinstance(output, Tensor):
        return output
    logits = getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    raise ConfigurationError(
        f"The model returned {type(output).__name__} without logits: expected a tensor or a transformers output with "
        "logits. For an encoder without a head, give pooling='mean', 'cls' or 'last'."
    )
