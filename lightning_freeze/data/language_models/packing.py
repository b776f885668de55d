"""Packing: short examples joined into rows of nearly equal length, which compute what they would compute alone.

A row has no attention mask; its ``position_ids`` begin at 0 with each example. From these, transformers makes a
block-diagonal attention mask (``masking_utils.find_packed_sequence_indices``), or the boundaries that flash attention
takes. It does so only where no keys and values are kept, hence ``use_cache=False`` in each batch.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lightning_freeze.module.tasks import IGNORE_INDEX

Example = dict[str, Any]


def pack_lengths(lengths: Sequence[int], limit: int) -> list[list[int]]:
    """Distribute examples to rows by best-fit decreasing: the longest first, each to the fullest row that it fits in.

    Ding et al., "Fewer Truncations Improve Language Modeling" (ICML 2024, arXiv:2404.10830) pack this way.

    Args:
        lengths: Length of each example, at most ``limit``.
        limit: The most tokens of a row.

    Returns:
        The examples of each row, by position.
    """
    rows: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (room, row), in ascending order
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        place = bisect_left(rooms, (lengths[i], -1))
        if place == len(rooms):
            rows.append([])
            room, row = limit, len(rows) - 1
        else:
            room, row = rooms.pop(place)
        rows[row].append(i)
        if room > lengths[i]:
            insort(rooms, (room - lengths[i], row))
    return rows


def pack(examples: Sequence[Example], limit: int) -> list[Example]:
    """Join examples into rows.

    Args:
        examples: With ``input_ids`` and ``labels`` of the same length, and ``index``.
        limit: The most tokens of a row.

    Returns:
        One example for each row, with ``position_ids`` too; its ``index`` is that of its first example.
    """
    rows = pack_lengths([len(example["input_ids"]) for example in examples], limit)
    return [join([examples[i] for i in row]) for row in rows]


class PackedCollator:
    """Makes a batch of rows that :func:`pack` made, all padded on the right to the same length.

    The length is the same in all batches, so that a row has the same inputs in each epoch.

    Args:
        pad_token_id: Fills ``input_ids``.
        length: Number of tokens of a row.
    """

    def __init__(self, pad_token_id: int, length: int) -> None:
        self.length = length
        # Each position of the padding is a sequence of its own, of one token that begins at 0.
        self.fill = {"input_ids": pad_token_id, "labels": IGNORE_INDEX, "position_ids": 0}

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Return a batch: ``input_ids``, ``position_ids``, ``labels`` (batch, length), ``index``, ``use_cache``.

        Args:
            examples: As :func:`pack` makes them.
        """
        batch: dict[str, Any] = {key: self._padded(key, [row[key] for row in examples]) for key in self.fill}
        return {**batch, "index": torch.tensor([row["index"] for row in examples]), "use_cache": False}

    def _padded(self, key: str, rows: list[Tensor]) -> Tensor:
        longest = rows[0].new_zeros(self.length)  # sets the length, and is taken out again
        return pad_sequence([*rows, longest], batch_first=True, padding_value=self.fill[key])[:-1].long()


def join(examples: Sequence[Example]) -> Example:
    """Return the row that some examples make.

    Args:
        examples: As :func:`pack` takes them.
    """
    labels = []
    for example in examples:
        own = example["labels"].clone()
        own[0] = IGNORE_INDEX  # nothing in its own example predicts the first token
        labels.append(own)
    return {
        "input_ids": torch.cat([example["input_ids"] for example in examples]),
        "position_ids": torch.cat([torch.arange(len(example["input_ids"])) for example in examples]).int(),
        "labels": torch.cat(labels),
        "index": examples[0]["index"],
    }
