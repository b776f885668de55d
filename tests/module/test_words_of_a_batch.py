"""One tag for each word at prediction, wherever the batch tells the words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from tiny_models import make_tokenizer
from tokenizers.normalizers import BertNormalizer
from torch.utils.data import DataLoader

from lightning_freeze.module import TransformerModule
from lightning_freeze.module.batch import word_starts

# "goods" is cut into pieces; the tokenizer drops a zero-width space.
ROWS = [["good", "\u200b", "goods", "plot"], ["bad", "film"]]


def encoded(**settings: Any) -> Any:
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.normalizer = BertNormalizer(clean_text=True)
    return tokenizer(ROWS, is_split_into_words=True, padding=True, return_tensors="pt", **settings)


def first_tokens() -> list[list[int | None]]:
    batch, result = encoded(), []
    for row, words in enumerate(ROWS):
        ids = batch.word_ids(row)
        result.append([ids.index(word) if word in ids else None for word in range(len(words))])
    return result


def plain(batch: Any, *left_out: str) -> dict[str, Any]:
    return {key: value for key, value in batch.items() if key not in left_out}


def test_the_rows_need_care() -> None:
    starts = first_tokens()
    assert starts[0][1] is None and encoded()["input_ids"].shape[1] == 6 and len(starts[1]) == 2


def test_words_of_what_a_tokenizer_returned() -> None:
    assert word_starts(encoded()) == first_tokens()


@pytest.mark.parametrize("none", [None, -1, -100])
def test_words_that_a_batch_names(none: int | None) -> None:
    batch = encoded()
    words = [[none if word is None else word for word in batch.word_ids(row)] for row in range(2)]
    ids: Any = words if none is None else torch.tensor(words)
    assert word_starts({**plain(batch), "word_ids": ids}) == first_tokens()


def test_words_from_offsets_and_labels_lack_those_that_are_dropped() -> None:
    expected = [[start for start in row if start is not None] for row in first_tokens()]
    assert word_starts(plain(encoded(return_offsets_mapping=True))) == expected
    labels = torch.full_like(encoded()["input_ids"], -100)
    for row, starts in enumerate(expected):
        labels[row, starts] = 1
    assert word_starts({**plain(encoded()), "labels": labels}) == expected
    assert word_starts((plain(encoded()), labels)) == expected


def test_what_is_known_of_tokens_alone() -> None:
    batch = encoded(return_special_tokens_mask=True)
    ordinary = [[i for i, token in enumerate(row) if token not in (0, 2, 3)] for row in batch["input_ids"].tolist()]
    assert word_starts(plain(batch)) == ordinary
    tokens = [[i for i, token in enumerate(row) if token != 0] for row in batch["input_ids"].tolist()]
    assert word_starts(plain(batch, "special_tokens_mask")) == tokens
    assert word_starts(batch["input_ids"]) is None


@pytest.mark.parametrize("key", ["encodings", "word_ids", "offset_mapping"])
def test_a_prediction_without_labels_has_one_tag_for_each_word(key: str, tiny_bert_dir: Path) -> None:
    batch = encoded(return_offsets_mapping=key == "offset_mapping")
    if key == "word_ids":
        batch = {**plain(batch), "word_ids": [batch.word_ids(row) for row in range(2)]}
    elif key == "offset_mapping":
        batch = plain(batch)
    torch.manual_seed(0)
    module = TransformerModule(str(tiny_bert_dir), "token-classification", labels=["A", "B", "O"])
    loader = DataLoader([0], batch_size=None, collate_fn=lambda _: batch)
    trainer = Trainer(logger=False, enable_progress_bar=False, accelerator="cpu")
    (output,) = trainer.predict(module, loader)  # type: ignore[misc]
    classes = output["predictions"].tolist()  # type: ignore[index, call-overload]
    expected = [
        ["O" if start is None else "ABO"[classes[row][start]] for start in starts if key != "offset_mapping" or start]
        for row, starts in enumerate(first_tokens())
    ]
    assert output["labels"] == expected  # type: ignore[index, call-overload]
