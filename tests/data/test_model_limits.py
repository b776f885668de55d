"""Inputs beyond the limits of a model are found before training, or avoided."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from lightning.pytorch import Trainer
from tiny_models import make_tokenizer
from tokenizers.pre_tokenizers import ByteLevel

from lightning_freeze import TextDataModule, TransformerModule
from lightning_freeze.data.model_limits import ModelLimits, model_limits
from lightning_freeze.errors import ConfigurationError

Write = Callable[[str, str], Path]
SMALL: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "max_position_embeddings": 20,
    "pad_token_id": 1,
}


BART: dict[str, Any] = {
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 8,
    "decoder_ffn_dim": 8,
}


def trainer(**options: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=1,
        **options,
    )


@pytest.mark.parametrize(
    ("family", "options", "positions"),
    [
        ("Bert", {}, 20),
        ("Roberta", {}, 18),  # counts positions from the padding id on
        ("Electra", {"embedding_size": 8}, 20),
        ("GPT2", {"n_positions": 20, "n_embd": 8, "n_layer": 1, "n_head": 2}, 20),
        ("OPT", {"ffn_dim": 8, "word_embed_proj_dim": 8}, 20),
        ("Bart", {"d_model": 8, **BART}, 20),
        ("GPTJ", {"n_positions": 20, "n_embd": 8, "n_layer": 1, "n_head": 2, "rotary_dim": 2}, 20),
        ("CTRL", {"n_positions": 20, "n_embd": 8, "n_layer": 1, "n_head": 2, "dff": 8}, 20),
        ("Yoso", {}, 20),  # its table has two rows more than it uses
        ("IBert", {}, 18),
        ("Mpt", {"d_model": 8, "n_heads": 2, "n_layers": 1, "max_seq_len": 20, "expansion_ratio": 1}, 20),
        ("M2M100", {"d_model": 8, **BART}, None),  # its sinusoids grow with the text
        ("Llama", {"num_key_value_heads": 2}, None),  # rotations have no end
        ("T5", {"d_model": 8, "d_kv": 4, "num_layers": 1, "num_heads": 2, "d_ff": 8}, None),
    ],
)
def test_the_limits_of_families(family: str, options: dict[str, Any], positions: int | None) -> None:
    config = getattr(transformers, f"{family}Config")(**{**SMALL, **options})
    model = getattr(transformers, f"{family}Model")(config)
    assert model_limits(torch.nn.ModuleDict({"wrapped": model})) == ModelLimits(positions, 60)
    if positions is not None:  # the limit is the model's own
        ids = torch.full((1, positions), 5)
        arguments = {"decoder_input_ids": ids} if family == "Bart" else {}
        model(input_ids=ids, **arguments)
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, positions + 1), 5), **{name: ids for name in arguments})


def test_a_module_of_ones_own_has_no_known_limits() -> None:
    assert model_limits(torch.nn.Linear(2, 2)) == model_limits(None) == ModelLimits()


def model(folder: Path, positions: int) -> TransformerModule:
    sizes = {**SMALL, "max_position_embeddings": positions, "vocab_size": len(make_tokenizer()), "pad_token_id": 0}
    transformers.BertModel(transformers.BertConfig(**sizes)).save_pretrained(folder)
    return TransformerModule(str(folder), num_classes=2)


def test_long_texts_are_cut_to_the_models_positions(tmp_path: Path, write: Write) -> None:
    train = write("train.csv", f"text,label\n{'good ' * 50},pos\nbad,neg\n")
    data = TextDataModule(make_tokenizer(), train=str(train))  # the tokenizer allows 64
    trainer().fit(model(tmp_path / "model", 20), data)
    assert max(len(example["input_ids"]) for example in data.encoded["train"]) == 20


def test_a_length_beyond_the_positions_is_refused_with_the_row(tmp_path: Path, write: Write) -> None:
    train = write("train.csv", f"text,label\nbad,neg\n{'good ' * 50},pos\n")
    data = TextDataModule(make_tokenizer(), train=str(train), max_length=30)
    message = r"train\.csv, line 3: the text has 30 tokens and the model 20 positions: expected data\.max_length of at"
    with pytest.raises(ConfigurationError, match=message):
        trainer().fit(model(tmp_path / "model", 20), data)
    short = write("short.csv", "text,label\nbad,neg\ngood,pos\n")
    trainer().fit(model(tmp_path / "model", 20), TextDataModule(make_tokenizer(), train=str(short), max_length=30))


def test_tokens_beyond_the_vocabulary(tmp_path: Path, write: Write) -> None:
    tokenizer = make_tokenizer()
    train = write("train.csv", "text,label\ngood,pos\nbad newtoken,neg\n")
    tokenizer.add_tokens(["newtoken"])
    data = TextDataModule(tokenizer, train=str(train))
    with pytest.raises(ConfigurationError, match=r"train\.csv, line 3: the token 'newtoken' has the id \d+"):
        trainer().fit(model(tmp_path / "model", 64), data)
    padded = make_tokenizer()
    padded.add_special_tokens({"pad_token": "[NEWPAD]"})
    data = TextDataModule(padded, train=str(write("b.csv", "text,label\ngood,pos\nbad,neg\n")))
    with pytest.raises(ConfigurationError, match=r"the token '\[NEWPAD\]' has the id .*resize_token_embeddings"):
        trainer().fit(model(tmp_path / "model", 64), data)


@pytest.mark.parametrize(("pair", "least"), [(False, 3), (True, 5)])
def test_a_length_without_room_for_text(write: Write, pair: bool, least: int) -> None:
    train = write("train.csv", "text,b,label\ngood,bad,pos\nbad,bad,neg\n")
    pairs: dict[str, Any] = {"task": "pair-classification", "text_pair": "b"} if pair else {}
    data = TextDataModule(make_tokenizer(), train=str(train), max_length=least, **pairs)
    data.setup("fit")
    if pair:
        with pytest.raises(ConfigurationError, match=r"data\.max_length is 4: expected at least 5"):
            TextDataModule(make_tokenizer(), train=str(train), max_length=4, **pairs).setup("fit")


def test_padding_and_end_tokens_in_texts_are_plain_text(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = make_tokenizer()
    texts = ["good film", "good [SEP] film", "[PAD][PAD] bad", "bad [SEP][SEP]"]
    rows = [{"text": text, "label": i % 2} for i, text in enumerate(texts)]
    data = TextDataModule(tokenizer, train=str(write("a.jsonl", "\n".join(map(json.dumps, rows)))))
    with caplog.at_level(logging.INFO):
        data.setup("fit")
    for example in data.encoded["train"]:
        ids = example["input_ids"].tolist()
        assert ids.count(tokenizer.eos_token_id) == 1 and ids.count(tokenizer.pad_token_id) == 0
    assert "a.jsonl: 3 texts contain the padding or end token" in caplog.text and "first at line 2" in caplog.text


def test_end_tokens_in_texts_do_not_stop_bart(write: Write) -> None:
    sizes = {"d_model": 8, **BART, "eos_token_id": 3, "bos_token_id": 2}
    config = transformers.BartConfig(
        **{**SMALL, **sizes, "max_position_embeddings": 64, "pad_token_id": 0, "num_labels": 2}
    )
    bart = transformers.BartForSequenceClassification(config)
    train = write("a.csv", "text,label\ngood [SEP] film,pos\nbad,neg\ngood,pos\n")
    trainer().fit(TransformerModule(bart, num_classes=2), TextDataModule(make_tokenizer(), train=str(train)))


def test_a_prompt_does_not_end(write: Write, tiny_gpt2_dir: Path) -> None:
    path = write("a.csv", "text\ngood film\n")
    data = TextDataModule(str(tiny_gpt2_dir), "causal-lm", predict=str(path))
    data.setup("predict")
    (example,) = data.encoded["predict"]
    assert example["input_ids"][-1] != data.tokenizer.eos_token_id
    assert {len(value) for key, value in example.items() if key != "index"} == {len(example["input_ids"])}


def test_a_prompt_leaves_room_for_what_is_written(write: Write, tiny_gpt2_dir: Path) -> None:
    path = write("a.csv", f"text\n{'good ' * 100}film\n")
    for max_length in (None, 60):
        data = TextDataModule(str(tiny_gpt2_dir), "causal-lm", predict=str(path), max_length=max_length)
        module = TransformerModule(str(tiny_gpt2_dir), "causal-lm", generate_kwargs={"max_new_tokens": 24})
        (output,) = trainer().predict(module, data) or []
        (example,) = data.encoded["predict"]
        assert len(example["input_ids"]) <= 40 and len(output["predictions"][0]) <= 64
        assert data.tokenizer.decode(example["input_ids"], skip_special_tokens=True).endswith("good film")
    module = TransformerModule(str(tiny_gpt2_dir), "causal-lm", generate_kwargs={"max_new_tokens": 64})
    with pytest.raises(ConfigurationError, match=r"max_new_tokens=64 and the model has 64 positions"):
        trainer().predict(module, TextDataModule(str(tiny_gpt2_dir), "causal-lm", predict=str(path)))


def test_a_tokenizer_that_joins_words_is_refused_for_tags(write: Write) -> None:
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    with pytest.raises(ConfigurationError, match=r"puts a space before each word.*add_prefix_space=True"):
        TextDataModule(tokenizer, "token-classification", train="a.jsonl")


def test_targets_beyond_the_positions_are_refused_with_the_row(tmp_path: Path, write: Write) -> None:
    sizes = {**SMALL, "d_model": 8, **BART, "vocab_size": len(make_tokenizer()), "pad_token_id": 0}
    transformers.BartForConditionalGeneration(transformers.BartConfig(**sizes)).save_pretrained(tmp_path / "bart")
    module = TransformerModule(str(tmp_path / "bart"), "seq2seq-lm")
    train = write("train.csv", f"source,target\nbad,bad\ngood,{'good ' * 50}\n")
    data = TextDataModule(make_tokenizer(), "seq2seq-lm", train=str(train), max_length=30)
    with pytest.raises(ConfigurationError, match=r"train\.csv, line 3: the text has 30 tokens and the model 20 pos"):
        trainer().fit(module, data)


def test_examples_are_checked_for_each_model_that_takes_them(tmp_path: Path, write: Write) -> None:
    train = write("train.csv", f"text,label\n{'good ' * 25},pos\nbad,neg\n")
    data = TextDataModule(make_tokenizer(), train=str(train))
    trainer().fit(model(tmp_path / "long", 64), data)
    with pytest.raises(ConfigurationError, match=r"train\.csv, line 2: the text has 27 tokens and the model 20 positi"):
        trainer().fit(model(tmp_path / "short", 20), data)
