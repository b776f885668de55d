"""Layers of networks with branches: siblings share a layer, chains are blocks, heights follow the flow of the data."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from layer_checks import gradient_errors, order_errors, partition_errors
from layer_models import CASES
from lightning.pytorch import LightningModule
from networks import (
    Adversarial,
    Block,
    Branches,
    ByChildren,
    ByFormat,
    ByName,
    ByNumber,
    ClassAttention,
    Convolutions,
    DeepAR,
    FrozenBackbone,
    ManyTasks,
    Network,
    Recurrent,
    SeesAndReads,
    Staged,
    TemporalFusion,
    TwoEncoders,
    Unreadable,
)
from torch import Tensor, nn

from lightning_freeze.layers import LayerStack

Prefixes = dict[str, list[str]]


def prefixes(module: nn.Module) -> Prefixes:
    return {layer.name: list(layer.prefixes) for layer in LayerStack(module)}


def heights(module: nn.Module) -> dict[str, int]:
    return {layer.name: layer.height for layer in LayerStack(module)}


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (DeepAR, {"embeddings": ["tables"], "0": ["rnn"], "head": ["outputs"]}),
        (Recurrent, {"embeddings": ["embed"], "0": ["rnn"], "1": ["mlp.0", "mlp.1"], "2": ["mlp.2"], "head": ["head"]}),
        (Convolutions, {"0": ["conv1", "bn1"], "1": ["conv2", "bn2"], "head": ["fc"]}),
        (Branches, {"0": ["first", "short"], "1": ["second"], "head": ["head"]}),
        (
            TemporalFusion,
            {"0": ["variables"], "1": ["lstm"], "2": ["attention"], "3": ["gate"], "4": ["output_layer"]},
        ),
    ],
)
def test_siblings_share_a_layer(module: Callable[[], nn.Module], expected: Prefixes) -> None:
    assert prefixes(module()) == expected
    assert partition_errors(LayerStack(module())) == []


def test_tables_are_no_blocks_even_where_code_does_not_tell() -> None:
    assert prefixes(Unreadable())["embeddings"] == ["tables"]
    assert "code" in LayerStack(Unreadable()).describe()


def test_a_convolution_and_its_norm_in_a_list_are_one_block() -> None:
    one = [nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU()]
    assert [layer.prefixes for layer in LayerStack(nn.Sequential(*one, nn.Conv2d(3, 3, 1))).blocks] == [
        ("0", "1", "2"),
        ("3",),
    ]
    other_way_round = [nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)]
    assert [layer.prefixes for layer in LayerStack(nn.Sequential(*other_way_round)).blocks] == [("0", "1"), ("2", "3")]


@pytest.mark.parametrize("depths", [(2, 2, 2), (3, 1, 2)])
def test_parallel_decoders_are_equally_far_from_the_output(depths: tuple[int, ...]) -> None:
    module = ManyTasks(depths)
    stack = LayerStack(module)
    assert {name: len(blocks) for name, blocks in stack.towers.items()} == {
        "layers": 3,
        **{f"decoders.{i}": depth for i, depth in enumerate(depths)},
    }
    tops = [stack[f"decoders.{i}.{depth - 1}"] for i, depth in enumerate(depths)]
    assert {layer.height for layer in tops} == {1}
    assert stack["layers.2"].height == max(depths) + 1
    assert len(stack.networks) == 1
    inputs = (torch.rand(2, 3, 4),)
    assert partition_errors(stack) == order_errors(stack, inputs) == gradient_errors(stack, inputs) == []


@pytest.mark.parametrize(
    ("stage", "names"),
    [
        (ByNumber, ["b1", "b2", "b3"]),
        (ByName, ["first", "second", "third"]),
        (ByFormat, ["unit1", "unit2", "unit3"]),
        (ByChildren, ["one", "two", "three"]),
    ],
)
def test_blocks_in_attributes_of_a_stage_count_one_by_one(stage: Callable[[], nn.Module], names: list[str]) -> None:
    stack = LayerStack(Staged(stage))
    assert [layer.prefixes for layer in stack.blocks] == [(f"stages.{i}.{n}",) for i in range(2) for n in names]
    inputs = (torch.rand(2, 3, 4),)
    assert partition_errors(stack) == order_errors(stack, inputs) == gradient_errors(stack, inputs) == []


@pytest.mark.parametrize("name", ["blocks_token_only", "post_network", "cls_attn_blocks", "cls_attn"])
def test_a_short_list_of_blocks_behind_a_long_one_counts_as_blocks(name: str) -> None:
    stack = LayerStack(ClassAttention(name))
    assert [layer.prefixes for layer in stack.blocks] == [(f"blocks.{i}",) for i in range(12)] + [
        (f"{name}.{i}",) for i in range(2)
    ]
    assert [layer.height for layer in stack] == list(range(14, -1, -1))
    assert order_errors(stack, (torch.rand(2, 3, 8),)) == []


def test_heights_of_a_chain_count_the_layers_behind() -> None:
    for case in ("bert-classifier", "t5", "mlp", "resnet"):
        stack = LayerStack(CASES[case].build())
        assert [layer.height for layer in stack] == list(range(len(stack)))[::-1]


def test_heights_of_explicit_groups_count_the_groups_behind() -> None:
    stack = LayerStack(Convolutions(), groups={"a": ["conv1", "bn1"], "b": ["conv2", "bn2"], "c": "fc"})
    assert [layer.height for layer in stack] == [2, 1, 0]


@pytest.mark.parametrize("depths", [(4, 4), (4, 2)])
def test_two_encoders_side_by_side_have_equal_tops(depths: tuple[int, int]) -> None:
    stack = LayerStack(TwoEncoders(depths))
    tops = [stack[f"{name}.{depth - 1}"] for name, depth in zip(("question", "passage"), depths, strict=True)]
    assert [layer.height for layer in tops] == [1, 1]
    assert [stack[f"{name}.head"].height for name in ("question", "passage")] == [0, 0]
    assert [[block.tower for block in blocks[-1:]] for blocks in stack.networks] == [["question"], ["passage"]]


def test_clip_has_two_towers_of_equal_height() -> None:
    stack = LayerStack(CASES["clip"].build())
    tops = [blocks[-1].height for blocks in stack.towers.values()]
    assert tops == [1, 1]
    assert {layer.height for layer in stack if layer.kind == "head"} == {0}


def test_an_encoder_that_feeds_another_stands_below_it() -> None:
    stack = LayerStack(CASES["t5"].build())
    encoder, decoder = stack.towers["encoder"], stack.towers["decoder"]
    assert min(layer.height for layer in encoder) > max(layer.height for layer in decoder)


def test_percentages_count_each_network() -> None:
    stack = LayerStack(TwoEncoders((4, 2)))
    frozen = [layer.name for layer in stack.select("50%").layers if layer.is_block]
    assert frozen == ["question.0", "question.1", "passage.0"]
    tasks = LayerStack(ManyTasks((2, 2)))
    assert [layer.name for layer in tasks.select("50%").layers if layer.is_block] == [f"layers.{i}" for i in range(3)]


def test_a_backbone_frozen_on_purpose_keeps_its_layers() -> None:
    stack = LayerStack(FrozenBackbone())
    assert stack.names == ["embeddings", "0", "1", "2", "3", "head"]
    assert stack.bystanders == ()


def test_a_discriminator_is_no_later_part_of_the_generator() -> None:
    stack = LayerStack(Adversarial())
    heads = [
        stack.layer_of(stack.module.generator.classifier.weight),
        stack.layer_of(stack.module.discriminator[2].weight),
    ]
    assert [layer and layer.height for layer in heads] == [0, 0]
    assert stack["generator.2"].height == stack["discriminator.1"].height == 1


def test_what_sees_stands_below_what_reads() -> None:
    stack = LayerStack(SeesAndReads())
    assert [layer.height for layer in stack.towers["vision"]] == [7, 6, 5]
    assert [layer.height for layer in stack.towers["text"]] == [4, 3, 2, 1]
    assert len(stack.networks) == 1


class Steps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 2)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.stem = nn.Linear(4, 8)


class ByAssignment(Steps):
    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        [x := block(x) for block in self.blocks]
        return self.head(x)


class Reduced(Steps):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(functools.reduce(lambda h, block: block(h), self.blocks, self.stem(x)))


class Recursive(Steps):
    def run(self, x: Tensor, i: int = 0) -> Tensor:
        return x if i == len(self.blocks) else self.run(self.blocks[i](x), i + 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.run(self.stem(x)))


class While(Steps):
    def forward(self, x: Tensor) -> Tensor:
        x, i = self.stem(x), 0
        while i < len(self.blocks):
            x = self.blocks[i](x)
            i += 1
        return self.head(x)


@pytest.mark.parametrize("build", [ByAssignment, Reduced, Recursive, While])
def test_a_chain_by_other_means_than_a_loop(build: Callable[[], nn.Module]) -> None:
    stack = LayerStack(build())
    assert stack.names == ["embeddings", "0", "1", "2", "head"]
    assert order_errors(stack, (torch.rand(2, 3, 4),)) == []


class Adversaries(LightningModule):
    """Generator and discriminator trained by hand, the discriminator also on what is real."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator, self.discriminator = Network(4, 8), nn.Sequential(Block(), Block(), nn.Linear(8, 1))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.generator(tokens)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        first, second = self.optimizers()
        self.manual_backward(-self.discriminator(self(batch[0])).mean())
        first.step()
        made = self(batch[0]).detach()
        self.manual_backward(self.discriminator(made).mean() - self.discriminator(batch[1]).mean())
        second.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(part.parameters(), 0.1) for part in (self.generator, self.discriminator)]


def test_networks_with_an_optimizer_each_have_heights_of_their_own() -> None:
    stack = LayerStack(Adversaries())
    assert [[block.height for block in blocks] for blocks in stack.networks] == [[4, 3, 2, 1], [2, 1]]
    assert stack.bystanders == ()


class Transducer(nn.Module):
    """An encoder of the sound and a recurrent network over the text, which meet in the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(Block() for _ in range(3))
        self.embedding = nn.Embedding(9, 8)
        self.lstm = nn.LSTM(8, 8, batch_first=True)
        self.joint = nn.Linear(8, 9)

    def forward(self, sound: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        for block in self.encoder:
            sound = block(sound)
        said, _ = self.lstm(self.embedding(text))
        return self.joint(sound + said)


def test_a_recurrent_network_beside_the_blocks_is_a_network_of_its_own() -> None:
    stack = LayerStack(Transducer())
    heights = {prefix: layer.height for layer in stack for prefix in layer.prefixes}
    assert heights["encoder.2"] == heights["lstm"] == 1
    assert heights["encoder.0"] == 3
    assert heights["joint"] == 0
    assert len(stack.networks) == 2
