"""General text: read from a file, and turned into token ids."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lightning_freeze.data.reading.readers import read_table
from lightning_freeze.errors import ConfigurationError

LEAST = 3
"""A ranking of the other texts needs at least two of them."""


def read_texts(path: str | os.PathLike[str], column: str, limit: int | None) -> list[str]:
    """Return texts from a file, evenly spread over it where it has more than enough.

    Args:
        path: A ``.txt`` file with one text in each line, or a file that :class:`TextDataModule` reads.
        column: The column of the text, in a file with columns.
        limit: The most texts; None for all.

    Raises:
        ConfigurationError: The file cannot be read, has no such column, or fewer than three texts.
    """
    name = os.fspath(path)
    if name.endswith(".txt"):
        texts = _lines(name)
    else:
        table = read_table(name)
        table.require(column, "column")
        texts = [table.text(i, column) for i, row in enumerate(table.rows) if row.get(column)]
    texts = list(dict.fromkeys(text for text in map(str.strip, texts) if text))
    if len(texts) < LEAST:
        raise ConfigurationError(f"{name} has {len(texts)} different texts: expected at least {LEAST}.")
    if limit is None or len(texts) <= limit:
        return texts
    return [texts[i * len(texts) // limit] for i in range(limit)]


def encode_texts(tokenizer: Any, texts: Sequence[str], max_length: int) -> list[dict[str, torch.Tensor]]:
    """Return the token ids of texts, cut to a length.

    Args:
        tokenizer: Any tokenizer of transformers.
        texts: The texts.
        max_length: The most tokens of a text.
    """
    options = {"truncation": True, "max_length": max_length, "padding": False, "return_attention_mask": False}
    encoded = tokenizer(list(texts), **options)
    keys = [key for key in ("input_ids", "token_type_ids") if key in encoded]
    return [{key: torch.tensor(encoded[key][i]) for key in keys} for i in range(len(texts))]


def fingerprint(examples: Sequence[dict[str, torch.Tensor]]) -> str:
    """Return a hash of encoded texts, which tells whether two models saw the same.

    Args:
        examples: As :func:`encode_texts` returns them.
    """
    digest = hashlib.sha256()
    for example in examples:
        digest.update(repr(example["input_ids"].tolist()).encode())
    return digest.hexdigest()


def _lines(name: str) -> list[str]:
    try:
        return Path(name).expanduser().read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise ConfigurationError(f"The text file {name!r} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"The text file {name!r} is not UTF-8 (byte {error.start}).") from error
