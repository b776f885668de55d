"""The longest sequence and the highest ids that a model can take, and what is found before training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from reviews import save_csv
from tiny_models import FAMILIES, VOCABULARY, make_tokenizer
from torch import nn

from lightning_freeze.data import TextDataModule
from lightning_freeze.module import InputLimits, TransformerModule
from lightning_freeze.module.pretrained.limits import find_limits


@pytest.mark.parametrize(
    ("family", "positions"),
    [
        ("Bert", 64),
        ("Roberta", 64),
        ("XLMRoberta", 64),
        ("MPNet", 64),
        ("DistilBert", 64),
        ("Albert", 64),
        ("Electra", 64),
        ("GPT2", 64),
        ("GPTNeo", 64),
        ("OPT", 64),
        ("Bart", 64),
        ("DebertaV2", None),
        ("XLNet", None),
        ("Llama", None),
        ("Bloom", None),
        ("T5", None),
    ],
)
def test_the_longest_sequence_is_the_one_that_the_model_takes(family: str, positions: int | None) -> None:
    config = getattr(transformers, f"{family}Config")(**FAMILIES[family])
    model = getattr(transformers, f"{family}Model")(config).eval()
    limits = find_limits(model)
    assert limits.positions == positions
    assert limits.vocabulary == len(VOCABULARY)
    model = model.get_encoder() if config.is_encoder_decoder else model
    model(torch.full((1, positions or 80), 5))
    if positions is not None:
        with pytest.raises((IndexError, RuntimeError, ValueError)):
            model(torch.full((1, positions + 1), 5))


def test_other_modules_have_no_known_limits() -> None:
    assert find_limits(nn.Sequential(nn.Embedding(5, 4))) == InputLimits()


def test_a_module_tells_its_limits(tiny_bert_dir: Path) -> None:
    expected = InputLimits(positions=64, vocabulary=len(VOCABULARY), token_types=2)
    assert TransformerModule(str(tiny_bert_dir), num_classes=2).input_limits == expected
    assert TransformerModule(str(tiny_bert_dir), num_classes=2, pooling="mean").input_limits == expected


def fit(folder: Path, encoder: Path, tokenizer: Any, text: str, **settings: Any) -> None:
    rows = [
        {"text": text, "label": i % 2}
        for i, text in enumerate(["good", "the film is bad", "a great film", "not the film", text])
    ]
    data = TextDataModule(tokenizer, train=str(save_csv(folder / "rows.csv", rows)), **settings)
    trainer = Trainer(max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.fit(TransformerModule(str(encoder), num_classes=2), data)


def test_a_text_that_is_too_long_is_found_before_training(tmp_path: Path, tiny_bert_dir: Path) -> None:
    message = r"line 6: the text has 100 tokens.*64 positions: expected data\.max_length of at most 64"
    with pytest.raises(MisconfigurationException, match=message):
        fit(tmp_path, tiny_bert_dir, str(tiny_bert_dir), "film " * 200, max_length=100)
    fit(tmp_path, tiny_bert_dir, str(tiny_bert_dir), "film " * 200)


def test_a_token_without_an_embedding_is_found_before_training(tmp_path: Path, tiny_bert_dir: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([f"w{i}" for i in range(9)])
    fit(tmp_path, tiny_bert_dir, tokenizer, "the tokens are not used")
    with pytest.raises(MisconfigurationException, match=r"line 6: the token 'w8' has the id \d+.* below 52"):
        fit(tmp_path, tiny_bert_dir, tokenizer, "the w8 film")


def test_a_model_without_segments_gets_none(tmp_path: Path) -> None:
    config = transformers.BertConfig(**FAMILIES["Bert"], type_vocab_size=1)
    model = transformers.BertForSequenceClassification(config)
    rows = [{"text": "good", "second": "bad", "label": i % 2} for i in range(4)]
    path = str(save_csv(tmp_path / "rows.csv", rows))
    data = TextDataModule(make_tokenizer(), "pair-classification", train=path, text_pair="second")
    trainer = Trainer(max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.fit(TransformerModule(model, "pair-classification", num_classes=2), data)
