"""Tiny real models and tokenizers, made once for each session."""

from __future__ import annotations

import gc
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from reviews import make_reviews, save_csv
from tiny_models import VOCABULARY, save_model
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTModel,
)

pytest_plugins = ["fast_cases", "time_limit"]


def pytest_collection_finish() -> None:
    """Imported objects live until the end: the garbage collector need not go through them each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_bert_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a BERT encoder of 4 layers (hidden size 16) and its tokenizer."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    return save_model(tmp_path_factory.mktemp("models") / "tiny-bert", BertModel(config))


@pytest.fixture(scope="session")
def tiny_gpt2_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a GPT-2 language model of 2 layers and a tokenizer."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(VOCABULARY), n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=3, eos_token_id=3
    )
    return save_model(tmp_path_factory.mktemp("models") / "tiny-gpt2", GPT2LMHeadModel(config))


@pytest.fixture(scope="session")
def tiny_t5_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a T5 model of 2 + 2 layers and a tokenizer."""
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(VOCABULARY),
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        pad_token_id=0,
        eos_token_id=3,
        decoder_start_token_id=0,
    )
    return save_model(tmp_path_factory.mktemp("models") / "tiny-t5", T5ForConditionalGeneration(config))


@pytest.fixture(scope="session")
def tiny_vit_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a ViT encoder of 2 layers for images of 8 x 8."""
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=8, patch_size=4
    )
    folder = tmp_path_factory.mktemp("models") / "tiny-vit"
    ViTModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def reviews_csv(tmp_path: Path) -> Path:
    """A CSV file of 60 reviews with the columns author, text and label."""
    return save_csv(tmp_path / "reviews.csv", make_reviews())


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    """Write a text file in the test's folder and return its path."""

    def write_file(name: str, content: str) -> Path:
        path = tmp_path / name
        path.write_text(content, encoding="utf-8")
        return path

    return write_file


@pytest.fixture(autouse=True)
def nothing_printed_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is printed once in a process is printed in each test."""
    monkeypatch.setattr("lightning_freeze.report.printed._PRINTED", set())
