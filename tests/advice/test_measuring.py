from __future__ import annotations

from pathlib import Path

import pytest
import torch
from advice_projects import Own, OwnData, text_data, text_module
from reviews import make_reviews, save_csv
from tiny_models import FAMILIES
from transformers import AutoModelForTokenClassification, BertConfig

from lightning_freeze import LayerStack, TextDataModule, TransformerModule
from lightning_freeze.advice.features import collect_sample
from lightning_freeze.advice.measuring import measure
from lightning_freeze.module.pooling import pool


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    return save_csv(tmp_path / "reviews.csv", make_reviews(90))


def test_features_are_the_hidden_states_of_the_model_averaged_over_its_tokens(tiny_bert_dir: Path) -> None:
    module = text_module(tiny_bert_dir).eval()
    batch = {
        "input_ids": torch.tensor([[2, 7, 8, 3], [2, 9, 3, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]),
        "labels": torch.tensor([0, 1]),
    }
    sample = collect_sample(LayerStack(module), [batch], lambda b: module.training_step(b, 0), "class", 10)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    states = module.model(**inputs, output_hidden_states=True).hidden_states
    assert list(sample.features) == ["embeddings", "0", "1", "2", "3"]
    for found, expected in zip(sample.features.values(), states, strict=True):
        torch.testing.assert_close(found, pool(expected, batch["attention_mask"], "mean").detach())
    assert sample.targets.tolist() == [0, 1]


def test_labels_of_tokens_take_the_vector_of_each_token() -> None:
    config = BertConfig(**FAMILIES["Bert"], num_labels=3)
    model = AutoModelForTokenClassification.from_config(config).eval()
    module = TransformerModule(model, task="token-classification", num_classes=3).eval()
    labels = torch.tensor([[-100, 1, 2, -100], [-100, 0, -100, -100]])
    batch = {
        "input_ids": torch.tensor([[2, 7, 8, 3], [2, 9, 3, 0]]),
        "attention_mask": torch.ones(2, 4),
        "labels": labels,
    }
    sample = collect_sample(LayerStack(module), [batch], lambda b: module.training_step(b, 0), "token", 10)
    assert sample.targets.tolist() == [1, 2, 0]
    states = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True)
    expected = states.hidden_states[-1][[0, 0, 1], [1, 2, 1]]
    torch.testing.assert_close(sample.features["1"], expected.detach())


def test_measurements_name_all_depths_and_layers_and_change_nothing(tiny_bert_dir: Path, reviews: Path) -> None:
    module = text_module(tiny_bert_dir)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    found = measure(module, text_data(tiny_bert_dir, reviews), examples=50, accelerator="cpu", max_steps=1)
    assert [depth.name for depth in found.depths] == ["embeddings", "0", "1", "2", "3"]
    assert list(found.layers) == ["embeddings", "0", "1", "2", "3", "head"]
    assert 50 <= found.examples <= 56
    assert 0.5 <= found.baseline <= 0.9
    assert found.depths[0].probe.mean > found.baseline, "words give the label away"
    assert all(each.fisher_trace > 0 and each.relative_norm > 0 for each in found.layers.values())
    assert found.best_depth() is not None
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())
    assert module.training


@pytest.mark.parametrize("classes", [None, 2])
def test_a_module_of_ones_own_is_measured_too(classes: int | None) -> None:
    found = measure(Own(classes), OwnData(classes), examples=40, accelerator="cpu", max_steps=1)
    assert [depth.name for depth in found.depths] == ["embeddings", "0", "1", "2"]
    assert found.depths[0].probe.mean > 0.8, "the stem is linear in the target"
    assert found.notes == ()


def test_manual_optimization_is_not_measured_and_says_so() -> None:
    module = Own(manual=True)
    before = module.head.weight.clone()
    found = measure(module, OwnData(), accelerator="cpu", max_steps=1)
    assert found.depths == ()
    assert "manual optimization" in found.notes[0]
    assert torch.equal(module.head.weight, before)


class Failing(Own):
    """Its loss needs more than one example."""

    def loss(self, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        if len(batch[0]) < 2:
            raise RuntimeError("expected more than one example")
        return super().loss(batch)


def test_an_error_of_the_module_costs_the_measurement_alone() -> None:
    found = measure(Failing(), OwnData(), examples=40, accelerator="cpu", max_steps=1)
    assert found.depths
    assert found.layers == {}
    assert found.notes == ("No gradients: RuntimeError: expected more than one example",)


def test_a_language_model_is_not_probed(tiny_gpt2_dir: Path, tmp_path: Path) -> None:
    rows = [{"text": row["text"]} for row in make_reviews(20)]
    data = TextDataModule(
        tokenizer=str(tiny_gpt2_dir), task="causal-lm", data=str(save_csv(tmp_path / "t.csv", rows)), batch_size=4
    )
    module = TransformerModule(str(tiny_gpt2_dir), task="causal-lm")
    found = measure(module, data, examples=20, accelerator="cpu", max_steps=1)
    assert found.depths == ()
    assert "too many classes" in found.notes[0]
    assert set(found.layers) >= {"0", "1"}
