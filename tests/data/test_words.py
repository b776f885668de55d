"""Every word of a row gets its tag: dropped words, rows longer than the model reads."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_models import make_tokenizer
from tokenizers.normalizers import BertNormalizer
from transformers import PreTrainedTokenizerFast

from lightning_freeze.data import TextDataModule
from lightning_freeze.data.predictions import prediction_rows
from lightning_freeze.data.words import windows
from lightning_freeze.errors import ConfigurationError

Write = Callable[[str, str], Path]
NAMES = ("good", "great", "fine")


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that drops invisible characters, as BERT's does."""
    made = make_tokenizer()
    made.backend_tokenizer.normalizer = BertNormalizer()
    return made


@pytest.mark.parametrize("budget", [1, 2, 3, 7, 62])
def test_each_word_counts_in_one_window(budget: int) -> None:
    rng = random.Random(budget)
    for _ in range(200):
        pieces = [rng.choice([0, 1, 1, 2, 5, 90]) for _ in range(rng.randint(1, 60))]
        cut = windows(pieces, budget)
        counted = [word for window in cut for word in range(window.first, window.last)]
        assert counted == list(range(len(pieces)))
        for window in cut:
            assert window.start <= window.first <= window.last <= window.stop
            assert sum(min(count, budget) for count in pieces[window.start : window.stop]) <= budget


def test_windows_give_words_context_on_both_sides() -> None:
    cut = windows([1] * 300, 60)
    assert all(window.first - window.start >= 7 for window in cut[1:])
    assert all(window.stop - window.last >= 7 for window in cut[:-1])


def tags_of(data: TextDataModule) -> list[list[str]]:
    """Predict, with a model that knows the right tag of each token, as ``TransformerModule.predict_step`` does."""
    known = data.tokenizer.convert_tokens_to_ids(list(NAMES))
    outputs = []
    for batch in data.predict_dataloader():
        names = [
            ["ENT" if token in known else "O" for token, tag in zip(*row, strict=True) if tag != -100]
            for row in zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True)
        ]
        outputs.append({"labels": names, "predictions": torch.zeros(1), "index": batch["index"]})
    records = prediction_rows(data.tables["predict"], data.task, data.columns, outputs)
    return [record["prediction"] for record in records]


def test_one_tag_for_each_word_in_its_place(write: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    rng = random.Random(1)
    odd = ["\u200b", "\ufeff", "", "\x07", "\u00ad", " "]
    words = [*NAMES, "film", "the", "films", "qwertyuiop" * 20, *odd]
    rows = [rng.choices(words, k=rng.choice([1, 3, 8, 100, 300])) for _ in range(60)] + [["\u200b"], odd]
    path = write("rows.jsonl", "\n".join(json.dumps({"tokens": row}) for row in rows))
    data = TextDataModule(
        tokenizer, "token-classification", predict=str(path), labels=["ENT", "O"], batch_size=7, max_length=40
    )
    data.setup("predict")
    assert max(len(example["input_ids"]) for example in data.encoded["predict"]) <= 40
    assert tags_of(data) == [["ENT" if word in NAMES else "O" for word in row] for row in rows]


def test_without_an_outside_tag_a_dropped_word_has_none(write: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    path = write("rows.jsonl", json.dumps({"tokens": ["good", "\u200b", "film"]}))
    data = TextDataModule(tokenizer, "token-classification", predict=str(path), labels=["ENT", "NOUN"])
    data.setup("predict")
    assert tags_of(data) == [["ENT", None, "O"]]


def test_all_words_of_a_long_row_are_trained_on_once(write: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [{"tokens": ["film", *["good"] * 200], "tags": ["O", *["ENT"] * 200]}]
    rows += [{"tokens": ["\u200b"], "tags": ["O"]}]  # nothing to learn here: no example, and no loss of NaN
    path = write("rows.jsonl", "\n".join(map(json.dumps, rows)))
    data = TextDataModule(tokenizer, "token-classification", train=str(path))
    data.setup("fit")
    counted = [tag for example in data.encoded["train"] for tag in example["labels"].tolist() if tag != -100]
    assert sorted(counted) == [0] * 200 + [1]
    assert {int(example["index"]) for example in data.encoded["train"]} == {0}


@pytest.mark.parametrize("mark", [-1, -100])
def test_words_without_a_label_are_not_trained_on(
    mark: int, write: Write, tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"tokens": ["film", "good", "bad"], "tags": [0, mark, 1]}, {"tokens": ["film"], "tags": [mark]}]
    path = write("rows.jsonl", "\n".join(map(json.dumps, rows)))
    data = TextDataModule(tokenizer, "token-classification", train=str(path))
    with caplog.at_level(logging.INFO):
        data.setup("fit")
    assert data.labels == ["0", "1"]
    (example,) = data.encoded["train"]  # a batch of the other row alone would have a loss of NaN
    assert example["labels"].tolist() == [-100, 0, -100, 1, -100]
    assert caplog.text.count("1 words have the tag -1, which is read as no label") == (mark == -1)


def test_a_row_of_dropped_words_alone_is_no_training_data(write: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    path = write("rows.jsonl", json.dumps({"tokens": ["\u200b", ""], "tags": ["A", "B"]}))
    with pytest.raises(ConfigurationError, match=r"rows\.jsonl: the tokenizer knows no word of any row"):
        TextDataModule(tokenizer, "token-classification", train=str(path)).setup("fit")
