"""Models that read the padding of a batch, and models that a batch can be too short for."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from lightning.pytorch import Trainer
from reviews import save_csv
from tiny_models import FAMILIES, SIZES, VOCABULARY, save_model

from lightning_freeze.data import TextDataModule
from lightning_freeze.module import TransformerModule
from lightning_freeze.module.pretrained.padding import padding_effect

TEXTS = ("good", "the film is bad and the plot is very poor", "a great film", "not the film", "film is " * 60)
SMALL: dict[str, dict[str, Any]] = {
    **FAMILIES,
    "FNet": SIZES,
    "ConvBert": {**SIZES, "embedding_size": 8},
    "Nystromformer": {**SIZES, "segment_means_seq_len": 64, "num_landmarks": 64},
    "BigBird": {**SIZES, "block_size": 4, "num_random_blocks": 1},
    "MobileBert": {**SIZES, "embedding_size": 8, "intra_bottleneck_size": 16, "true_hidden_size": 16},
    "Canine": {
        **{key: value for key, value in SIZES.items() if key != "vocab_size"},
        "num_hash_buckets": 64,
        "local_transformer_stride": 8,
    },
    "Funnel": {
        "vocab_size": len(VOCABULARY),
        "block_sizes": [1, 1, 1],
        "d_model": 16,
        "n_head": 2,
        "d_head": 8,
        "d_inner": 32,
    },
    "Reformer": {
        "vocab_size": len(VOCABULARY),
        "hidden_size": 16,
        "attention_head_size": 8,
        "num_attention_heads": 2,
        "feed_forward_size": 32,
        "axial_pos_shape": [8, 8],
        "axial_pos_embds_dim": [8, 8],
        "max_position_embeddings": 64,
        "attn_layers": ["local", "lsh"],
        "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8,
        "num_buckets": 2,
        "is_decoder": False,
    },
    "Mpt": {
        "vocab_size": len(VOCABULARY),
        "d_model": 16,
        "n_heads": 2,
        "n_layers": 2,
        "max_seq_len": 64,
        "expansion_ratio": 2,
    },
}


def folder_of(path: Path, family: str) -> Path:
    torch.manual_seed(0)
    sizes = {key: value for key, value in SMALL[family].items() if key != "pad_token_id"}
    config = getattr(transformers, f"{family}Config")(**sizes, pad_token_id=0, bos_token_id=2, eos_token_id=3)
    model = getattr(transformers, f"{family}ForSequenceClassification")(config)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0.0, 0.2)  # the usual spread of 0.02 would hide a difference
    save_model(path, model)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    tokenizer.model_max_length = 10**6  # as many checkpoints have it
    tokenizer.save_pretrained(path)
    return path


def fit(path: Path, family: str, texts: tuple[str, ...], stage: str = "fit", batch_size: int = 5) -> list[str]:
    """Fit or validate, and return the messages about padding."""
    folder = folder_of(path / "model", family)
    rows = str(save_csv(path / "rows.csv", [{"text": text, "label": i % 2} for i, text in enumerate(texts)]))
    data = TextDataModule(str(folder), train=rows, val=rows, batch_size=batch_size)
    trainer = Trainer(max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        getattr(trainer, stage)(TransformerModule(str(folder), num_classes=2), data)
    return [message for warning in caught if "reads padding" in (message := str(warning.message))]


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize(
    ("family", "stage"),
    [
        *[("FNet", "fit"), ("FNet", "validate"), ("MobileBert", "fit"), ("Canine", "fit"), ("BigBird", "fit")],
        *(pytest.param(family, "fit", marks=pytest.mark.slow) for family in ("ConvBert", "Nystromformer", "Funnel")),
    ],
)
def test_a_model_that_reads_padding_is_named_once(family: str, stage: str, tmp_path: Path) -> None:
    (message,) = fit(tmp_path, family, TEXTS, stage)
    assert message.startswith(f"{family}ForSequenceClassification reads padding")
    assert "batch_size=1" in message


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize("family", ["Bert", "XLNet", "DebertaV2", "RoFormer", "GPTNeo", "Gemma2"])
def test_a_model_that_masks_padding_is_not(family: str, tmp_path: Path) -> None:
    assert fit(tmp_path, family, TEXTS) == []


@pytest.mark.parametrize(("family", "reads"), [("FNet", True), ("XLNet", False)])
def test_tags_are_measured_too(family: str, reads: bool, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    lines = [{"tokens": text.split(), "tags": ["O", "B"] * 60} for text in TEXTS[:4]]
    rows.write_text("".join(json.dumps({**line, "tags": line["tags"][: len(line["tokens"])]}) + "\n" for line in lines))
    folder = folder_of(tmp_path / "model", family)
    module = TransformerModule(str(folder), "token-classification", labels=["B", "O"])
    data = TextDataModule(str(folder), "token-classification", train=str(rows))
    trainer = Trainer(max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(module, data)
    assert any("reads padding" in str(warning.message) for warning in caught) == reads


def test_texts_of_one_length_need_no_padding(tmp_path: Path) -> None:
    assert fit(tmp_path, "FNet", ("good film", "bad film", "the film")) == []


def test_measuring_changes_neither_the_model_nor_the_random_numbers(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "model", "BigBird")
    module = TransformerModule(str(folder), num_classes=2)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    encoded = tokenizer(list(TEXTS), truncation=True, max_length=64)["input_ids"]
    examples = [{"input_ids": torch.tensor(ids)} for ids in encoded]
    torch.manual_seed(5)
    effect = padding_effect(module.model, lambda model, inputs: model(**inputs).logits, examples)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3))
    assert effect is not None
    assert module.model.base_model.attention_type == "block_sparse"  # type: ignore[union-attr]
    assert module.model.training


@pytest.mark.parametrize("family", ["Canine", "Funnel", "Reformer"])
def test_batches_are_as_long_as_a_model_needs(family: str, tmp_path: Path) -> None:
    fit(tmp_path, family, ("a", *TEXTS), batch_size=1)


@pytest.mark.parametrize("family", ["Mpt", "Reformer"])
def test_a_limit_without_a_table_is_known(family: str, tmp_path: Path) -> None:
    fit(tmp_path, family, TEXTS)
    module = TransformerModule(str(tmp_path / "model"), num_classes=2)
    assert module.input_limits.positions == 64
