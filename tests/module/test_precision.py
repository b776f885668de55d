"""Weights are float32, whatever precision they were saved in, unless something else was asked for."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from reviews import make_reviews, save_csv
from tiny_models import save_model
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from lightning_freeze.data import TextDataModule
from lightning_freeze.module import PooledModel, TransformerModule
from lightning_freeze.module.pretrained.precision import dtype_argument, take_dtype
from lightning_freeze.module.pretrained.structure import load_structure
from lightning_freeze.module.tasks import get_task


def dtypes(module: nn.Module) -> set[torch.dtype]:
    return {parameter.dtype for parameter in module.parameters()}


@pytest.fixture(params=[torch.float16, torch.bfloat16, torch.float64], ids=str)
def saved_bert(request: pytest.FixtureRequest, tmp_path: Path, tiny_bert_dir: Path) -> Path:
    return save_model(tmp_path / "saved", AutoModel.from_pretrained(tiny_bert_dir).to(request.param))


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize("settings", [{}, {"pooling": "mean"}, {"pretrained": False}], ids=str)
def test_weights_are_float32(settings: dict[str, Any], saved_bert: Path, tmp_path: Path) -> None:
    module = TransformerModule(str(saved_bert), num_classes=2, **settings)
    assert dtypes(module) == {torch.float32}
    data = TextDataModule(str(saved_bert), train=str(save_csv(tmp_path / "a.csv", make_reviews(8))))
    runner = quiet_trainer(max_steps=2)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", module="lightning_freeze")
        runner.fit(module, data)
    assert runner.callback_metrics["train_loss"].isfinite()
    runner.save_checkpoint(tmp_path / "a.ckpt")
    assert dtypes(TransformerModule.load_from_checkpoint(tmp_path / "a.ckpt")) == {torch.float32}


def quiet_trainer(**settings: Any) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return Trainer(accelerator="cpu", enable_model_summary=False, **{**quiet, **settings})


def test_language_models_and_images(tmp_path: Path, tiny_gpt2_dir: Path, tiny_t5_dir: Path, tiny_vit_dir: Path) -> None:
    cases: list[tuple[Any, Path, str, dict[str, Any]]] = [
        (AutoModelForCausalLM, tiny_gpt2_dir, "causal-lm", {}),
        (AutoModelForSeq2SeqLM, tiny_t5_dir, "seq2seq-lm", {}),
        (AutoModel, tiny_vit_dir, "image-classification", {"num_classes": 2}),
    ]
    for auto, folder, task, settings in cases:
        auto.from_pretrained(folder).half().save_pretrained(tmp_path / task)
        assert dtypes(TransformerModule(str(tmp_path / task), task, **settings)) == {torch.float32}  # type: ignore[arg-type]


@pytest.mark.parametrize("pooling", [None, "mean"])
@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
@pytest.mark.parametrize(("value", "expected"), [("bfloat16", torch.bfloat16), ("auto", torch.float16)])
def test_another_precision_on_request(
    pooling: Any, name: str, value: str, expected: torch.dtype, tmp_path: Path, tiny_bert_dir: Path
) -> None:
    folder = save_model(tmp_path / "half", AutoModel.from_pretrained(tiny_bert_dir).half())
    module = TransformerModule(str(folder), num_classes=2, pooling=pooling, model_kwargs={name: value})
    encoder = module.model.encoder if pooling else module.model
    assert dtypes(encoder) == {expected}  # type: ignore[arg-type]
    ids = torch.ones(2, 3, dtype=torch.long)
    assert module(input_ids=ids, attention_mask=ids).shape == (2, 2)


def test_the_trainers_precision(tmp_path: Path, tiny_bert_dir: Path) -> None:
    module = TransformerModule(str(tiny_bert_dir), num_classes=2)
    data = TextDataModule(str(tiny_bert_dir), train=str(save_csv(tmp_path / "a.csv", make_reviews(8))))
    quiet_trainer(max_steps=1, precision="bf16-true").fit(module, data)
    assert dtypes(module) == {torch.bfloat16}


def test_a_module_in_sixteen_bits_is_a_warning(tmp_path: Path, tiny_bert_dir: Path) -> None:
    encoder = AutoModel.from_pretrained(tiny_bert_dir).to(torch.bfloat16)
    module = TransformerModule(encoder, num_classes=2)
    data = TextDataModule(str(tiny_bert_dir), train=str(save_csv(tmp_path / "a.csv", make_reviews(8))))
    with pytest.warns(UserWarning, match=r"trainable parameters are bfloat16, for example 'model\.encoder\."):
        quiet_trainer(max_steps=1).fit(module, data)
    module.model.encoder.requires_grad_(False)  # type: ignore[union-attr]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", module="lightning_freeze")
        quiet_trainer(max_steps=1).fit(module, data)


def test_a_quantised_model_keeps_its_types() -> None:
    assert dtype_argument(None, quantised=True) == {}
    assert list(dtype_argument(torch.float16, quantised=True).values()) == [torch.float16]


def test_a_quantised_encoder_below_a_small_head() -> None:
    class Quantised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 4, dtype=torch.int8), requires_grad=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.half() @ self.weight.half()

    model = PooledModel(Quantised(), get_task("classification"), 2, hidden_size=4)
    assert model(input_ids=torch.ones(2, 3, 4)).dtype == torch.float32
    assert model.encoder.weight.dtype == torch.int8


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("bf16", r"dtype is 'bf16': expected one of auto, float32.*Did you mean 'bfloat16'"),
        ("flaot32", r"Did you mean 'float32'"),
        ("int8", r"dtype is 'int8'"),
        (torch.int8, r"dtype is torch\.int8"),
        (16, r"dtype is 16"),
    ],
)
def test_wrong_types(value: Any, message: str, tiny_bert_dir: Path) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        TransformerModule(str(tiny_bert_dir), num_classes=2, model_kwargs={"dtype": value})


def test_both_names_of_the_argument() -> None:
    settings = {"torch_dtype": "torch.float16", "dtype": None, "other": 1}
    assert take_dtype(settings) == torch.float16
    assert settings == {"other": 1}


def test_the_structure_of_a_model_in_sixteen_bits(tmp_path: Path) -> None:
    transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=20, dtype="float16"
    ).save_pretrained(tmp_path)
    assert dtypes(load_structure(tmp_path)) == {torch.float32}
