"""Heads for encoders without one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from transformers import AutoModel

from lightning_freeze.module.pooling import PooledModel, call_with, find_hidden_size, pool
from lightning_freeze.module.tasks import get_task

HIDDEN = torch.arange(12.0).reshape(2, 3, 2)


@pytest.mark.parametrize(
    ("mask", "mean", "cls", "last"),
    [
        ([[1, 1, 0], [1, 1, 1]], [[1.0, 2.0], [8.0, 9.0]], [[0.0, 1.0], [6.0, 7.0]], [[2.0, 3.0], [10.0, 11.0]]),
        ([[0, 1, 1], [1, 1, 1]], [[3.0, 4.0], [8.0, 9.0]], [[2.0, 3.0], [6.0, 7.0]], [[4.0, 5.0], [10.0, 11.0]]),
    ],
    ids=["padding right", "padding left"],
)
def test_pooling_skips_padding(mask: Any, mean: Any, cls: Any, last: Any) -> None:
    tensor = torch.tensor(mask)
    assert pool(HIDDEN, tensor, "mean").tolist() == mean
    assert pool(HIDDEN, tensor, "cls").tolist() == cls
    assert pool(HIDDEN, tensor, "last").tolist() == last


def test_without_a_mask_every_position_counts() -> None:
    assert pool(HIDDEN, None, "mean").tolist() == HIDDEN.mean(1).tolist()


def test_hidden_size_from_config_attribute_or_layer() -> None:
    layer = nn.TransformerEncoderLayer(12, 2, batch_first=True)
    assert find_hidden_size(nn.Sequential(nn.Embedding(5, 12), nn.TransformerEncoder(layer, 1))) == 12
    module = nn.Identity()
    module.config = SimpleNamespace(d_model=7)  # type: ignore[assignment]
    assert find_hidden_size(module) == 7
    module = nn.Identity()
    module.num_features = 9  # type: ignore[assignment]
    assert find_hidden_size(module) == 9
    with pytest.raises(MisconfigurationException, match=r"hidden size of Identity is unknown.*hidden_size="):
        find_hidden_size(nn.Identity())


class Named(nn.Module):
    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> str:
        return f"named, mask {attention_mask is not None}"


class Anything(nn.Module):
    def forward(self, **inputs: Any) -> str:
        return ",".join(inputs)


class Single(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


def test_each_module_gets_the_inputs_it_takes() -> None:
    inputs = {"input_ids": torch.ones(1, 2), "attention_mask": torch.ones(1, 2), "other": 3}
    assert call_with(Named(), inputs) == "named, mask True"
    assert call_with(Anything(), inputs) == "input_ids,attention_mask,other"
    assert call_with(Single(), inputs) is inputs["input_ids"]


@pytest.mark.parametrize("shape", [(2, 5, 6), (2, 6), (2, 6, 3, 3)], ids=["sequence", "vector", "feature map"])
def test_outputs_of_any_shape(shape: tuple[int, ...]) -> None:
    class Encoder(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.randn(shape)

    model = PooledModel(Encoder(), get_task("classification"), 4, hidden_size=6)
    assert model(input_ids=torch.ones(2, 5)).shape == (2, 4)


def test_token_tasks_keep_every_token(tiny_bert_dir: Path) -> None:
    encoder = AutoModel.from_pretrained(tiny_bert_dir)
    model = PooledModel(encoder, get_task("token-classification"), 3)
    assert model(input_ids=torch.ones(2, 5, dtype=torch.long)).shape == (2, 5, 3)


def test_no_pooling_takes_the_output_as_logits() -> None:
    model = PooledModel(Single(), get_task("classification"), 2, pooling="none")
    logits = torch.randn(3, 2)
    assert model(input_ids=logits) is logits
    assert not list(model.parameters())


def test_unsuitable_encoders() -> None:
    with pytest.raises(MisconfigurationException, match=r"'causal-lm' needs a language-model head"):
        PooledModel(Single(), get_task("causal-lm"), 2, hidden_size=4)
    model = PooledModel(Single(), get_task("token-classification"), 2, hidden_size=4)
    with pytest.raises(MisconfigurationException, match=r"one vector per token.*shape \(2, 4\)"):
        model(input_ids=torch.ones(2, 4))
    with pytest.raises(MisconfigurationException, match=r"returned str"):
        PooledModel(Named(), get_task("classification"), 2, hidden_size=4)(input_ids=torch.ones(2, 4))
