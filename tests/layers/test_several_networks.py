"""Modules that hold more than one network: heights, shares and phases count each network by itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as tf
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn
from toys import loader, trainer

from lightning_freeze import DiscriminativeLR, EpochTrigger, GradualUnfreezing, LayerFreezing, LayerStack
from lightning_freeze.schedule.phases import gradual_phases


def bert(layers: int) -> Any:
    config = tf.BertConfig(
        vocab_size=32,
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
    )
    return tf.BertForSequenceClassification(config)


class Distilled(nn.Module):
    def __init__(self, first: bool, layers: int, kind: str) -> None:
        super().__init__()
        if first:
            setattr(self, kind, bert(layers).requires_grad_(False))
        self.student = bert(4)
        if not first:
            setattr(self, kind, bert(layers).requires_grad_(False))
        self._kind = kind

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            target = getattr(self, self._kind)(x).logits
        return nn.functional.mse_loss(self.student(x).logits, target)


class TwoEncoders(nn.Module):
    """A dense passage retriever: two encoders meet in a product."""

    def __init__(self, question: int, passage: int) -> None:
        super().__init__()
        self.question, self.passage = bert(question).bert, bert(passage).bert

    def forward(self, question: Tensor, passage: Tensor) -> Tensor:
        return self.question(question).pooler_output @ self.passage(passage).pooler_output.T


class Averaged(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.student = bert(3)
        self.average = torch.optim.swa_utils.AveragedModel(self.student)

    def forward(self, x: Tensor) -> Tensor:
        return self.student(x).logits


class Frozen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = bert(3).bert.requires_grad_(False), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x).pooler_output)


class Fusion(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = bert(2).bert.requires_grad_(False), bert(2).bert
        self.head = nn.Linear(32, 2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head(torch.cat([self.image(x).pooler_output, self.text(y).pooler_output], 1))


def heights(stack: LayerStack) -> dict[str, int]:
    return {layer.name: layer.height for layer in stack if not layer.is_bystander}


def names(stack: LayerStack, selector: str) -> list[str]:
    return [layer.name for layer in stack.select(selector).layers]


@pytest.mark.parametrize(("first", "layers"), [(True, 4), (False, 4), (True, 12), (False, 12)])
@pytest.mark.parametrize("kind", ["teacher", "ema_model", "ref_model", "other"])
def test_a_frozen_second_network_counts_for_nothing(first: bool, layers: int, kind: str) -> None:
    stack = LayerStack(Distilled(first, layers, kind))
    alone = heights(LayerStack(bert(4)))
    assert heights(stack) == {f"student.{name}": height for name, height in alone.items()}
    assert names(stack, "50%") == ["student.embeddings", "student.0", "student.1"]
    assert names(stack, "embeddings,:2,-1,head") == [f"student.{n}" for n in ("embeddings", "0", "1", "3", "head")]
    assert names(stack, "all") == list(heights(stack))
    assert len({layer.tower for layer in stack.bystanders}) == 1


def test_an_average_of_the_weights_counts_for_nothing() -> None:
    alone = heights(LayerStack(bert(3)))
    assert heights(LayerStack(Averaged())) == {f"student.{name}": height for name, height in alone.items()}


@pytest.mark.parametrize("build", [Frozen, Fusion])
def test_a_frozen_part_of_the_network_that_trains_is_no_bystander(build: type[nn.Module]) -> None:
    assert not LayerStack(build()).bystanders


def test_towers_side_by_side_have_equal_tops_and_are_unfrozen_level_by_level() -> None:
    stack = LayerStack(TwoEncoders(4, 2))
    found = heights(stack)
    assert found["question.3"] == found["passage.1"] == 1
    assert found["question.head"] == found["passage.head"] == 0
    phases = [phase.train for phase in gradual_phases(stack, EpochTrigger(1))]
    assert phases[:2] == ["head", "question.3,passage.1,head"]
    assert phases[2] == "question.2,passage.0,question.3,passage.1,head"
    assert phases[-1].startswith("question.embeddings")
    assert names(stack, "50%") == [f"question.{n}" for n in ("embeddings", "0", "1")] + [
        "passage.embeddings",
        "passage.0",
    ]


def test_clip_has_two_towers_of_one_height() -> None:
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    config = tf.CLIPConfig(
        text_config={**sizes, "num_hidden_layers": 2, "vocab_size": 60, "bos_token_id": 1, "eos_token_id": 2},
        vision_config={**sizes, "num_hidden_layers": 4, "image_size": 32, "patch_size": 16},
    )
    found = heights(LayerStack(tf.CLIPModel(config)))
    assert found["vision.3"] == found["text.1"] == 1
    assert found["vision.0"] == 4 and found["text.0"] == 2


def t5() -> nn.Module:
    return tf.T5ForConditionalGeneration(
        tf.T5Config(d_model=16, num_layers=2, num_heads=2, d_kv=8, d_ff=32, vocab_size=60)
    )


@pytest.mark.parametrize("build", [lambda: bert(3), t5])
def test_a_chain_counts_down_to_the_head(build: Any) -> None:
    stack = LayerStack(build())
    assert [layer.height for layer in stack] == list(range(len(stack) - 1, -1, -1))


class Module(LightningModule):
    def __init__(self, teacher: str) -> None:
        super().__init__()
        if teacher == "before":
            self.teacher = bert(12).requires_grad_(False).eval()
        torch.manual_seed(1)
        self.student = bert(4)
        if teacher == "behind":
            self.teacher = bert(12).requires_grad_(False).eval()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.student(batch[0]).logits, batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.student.parameters(), lr=0.1)


class Trains(Callback):
    def __init__(self) -> None:
        self.seen: list[set[str]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.seen.append({n for n, p in pl_module.student.named_parameters() if p.requires_grad})


CALLBACKS = {
    "rates": lambda: DiscriminativeLR(0.5, verbose=False),
    "half": lambda: LayerFreezing("50%", verbose=False),
    "gradual": lambda: GradualUnfreezing(verbose=False),
}


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("teacher", ["before", "behind"])
@pytest.mark.parametrize("callback", CALLBACKS.values(), ids=CALLBACKS)
def test_a_fit_beside_a_teacher_is_that_without_it(teacher: str, callback: Any) -> None:
    states, trains = [], []
    for there in ("nothing", teacher):
        module, seen = Module(there), Trains()
        torch.manual_seed(3)
        trainer(callback(), seen, max_epochs=6).fit(module, loader(2))
        states.append(dict(module.student.state_dict()))
        trains.append(seen.seen)
    assert trains[0] == trains[1]
    torch.testing.assert_close(states[1], states[0], rtol=0, atol=0)
