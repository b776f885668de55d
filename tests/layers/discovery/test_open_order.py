"""Branches inside one stage, and code that leaves the order open: the order is right, or described as a guess."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from layer_checks import gradient_errors, order_errors, partition_errors
from layer_models import CASES, small_block
from peft import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from lightning_freeze.layers import LayerStack
from lightning_freeze.layers.forward_source.reader import use_order


def prefixes(stack: LayerStack) -> dict[str, list[str]]:
    return {layer.name: list(layer.prefixes) for layer in stack}


class Scales(nn.Module):
    """One stage with two branches of different depth, that exchange what they found at its end."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList([nn.Sequential(*(small_block() for _ in range(depth))) for depth in (1, 2)])
        self.fusion = nn.ModuleList([nn.Linear(32, 32) for _ in range(2)])

    def forward(self, x: list[Tensor]) -> list[Tensor]:
        x = [branch(x[i]) for i, branch in enumerate(self.branches)]
        return [fuse(x[i] + x[1 - i]) for i, fuse in enumerate(self.fusion)]


class MultiScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(8, 32)
        self.stages = nn.ModuleList([Scales(), Scales()])
        self.head = nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        scales = [self.stem(x)] * 2
        for stage in self.stages:
            scales = stage(scales)
        return self.head(scales[0] + scales[1])


def test_what_joins_the_branches_of_a_stage_stays_in_that_stage() -> None:
    stack = LayerStack(MultiScale())
    inputs = (torch.rand(2, 3, 8),)
    # The branches run side by side, so that they are no depth: each stage is one block.
    assert [x.prefixes for x in stack.blocks] == [("stages.0",), ("stages.1",)]
    assert stack["head"].prefixes == ("head",)
    assert partition_errors(stack) == order_errors(stack, inputs) == gradient_errors(stack, inputs) == []


@pytest.mark.parametrize("name", ["crossvit_tiny_240", "hrnet_w18_small"])
def test_timm_models_of_several_scales(name: str) -> None:
    module = pytest.importorskip("timm").create_model(name)
    stack = LayerStack(module)
    assert partition_errors(stack) == []
    for layer in stack.blocks:
        stages = {p.rpartition(".branches")[0] or p.rpartition(".blocks")[0] for p in layer.prefixes[:1]}
        others = [p for p in layer.prefixes[1:] if not p.startswith("transition")]
        assert all(p.startswith(tuple(stages)) for p in others), layer.prefixes


class Routes(nn.Module):
    """Two stacks of which the caller chooses one."""

    def __init__(self) -> None:
        super().__init__()
        self.after = nn.Linear(32, 2)
        self.coarse = nn.Sequential(*(small_block() for _ in range(2)))
        self.fine = nn.Sequential(*(small_block() for _ in range(2)))
        self.before = nn.Linear(32, 32)

    def forward(self, x: Tensor, fine: bool = False) -> Tensor:
        path = self.fine if fine else self.coarse
        return self.after(path(self.before(x)))


def test_one_of_two_children_counts_where_it_runs_and_the_choice_is_said() -> None:
    assert use_order(Routes()).order == ["before", "fine", "coarse", "after"]
    stack = LayerStack(Routes())
    assert stack.names[0] == "embeddings"
    assert stack["embeddings"].prefixes == ("before",)
    assert stack["head"].prefixes == ("after",)
    assert "fine and coarse: the inputs choose which one runs, they stand one behind the other" in stack.describe()


class Unmentioned(Routes):
    def forward(self, x: Tensor, fine: bool = False) -> Tensor:
        return self.after(self.coarse(self.before(x)))


class Picks(nn.Module):
    """Runs its blocks by numbers that only the inputs tell."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Linear(32, 32)
        self.first = nn.ModuleList([small_block() for _ in range(2)])
        self.second = nn.ModuleList([small_block() for _ in range(2)])

    def forward(self, x: Tensor, path: list[int]) -> Tensor:
        x = self.before(x)
        for number in path:
            x = self.second[number](self.first[number](x))
        return x


@pytest.mark.parametrize(
    ("module", "sentence"),
    [
        (Unmentioned, "fine: no code that runs it was found, it stands where it is registered"),
        (Picks, "first and second: one loop runs them in a way that its code does not tell, their order is a guess"),
    ],
)
def test_an_order_that_the_code_does_not_tell_is_said(module: type[nn.Module], sentence: str) -> None:
    assert sentence in LayerStack(module()).assumptions


class Refined(nn.Module):
    """A decoder that is lent the weights of an outer head, and does not use them itself."""

    def __init__(self, lent: nn.Linear) -> None:
        super().__init__()
        self.class_embed = nn.Linear(32, 2)
        self.class_embed.weight, self.class_embed.bias = lent.weight, lent.bias
        self.layers = nn.ModuleList([small_block() for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(8, 32)
        self.classifier = nn.Linear(32, 2)
        self.decoder = Refined(self.classifier)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.decoder(self.stem(x)))


def test_weights_of_others_that_a_module_only_holds_are_where_the_others_run() -> None:
    stack = LayerStack(Detector())
    assert stack["embeddings"].prefixes == ("stem",)
    assert stack["head"].prefixes == ("classifier",)
    assert partition_errors(stack) == []
    assert stack.ties == ()


@pytest.mark.parametrize(
    "config",
    [
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
        PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
        PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, encoder_hidden_size=16),
        PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=4),
    ],
    ids=["prompt", "prefix", "p-tuning", "classifier"],
)
def test_prompts_are_made_before_the_blocks(config: Any) -> None:
    name = "gpt2" if config.task_type == "CAUSAL_LM" else "bert-classifier"
    tiny = {"n_layer": 3, "n_embd": 32, "n_head": 2, "vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2}
    base = GPT2LMHeadModel(GPT2Config(**tiny)) if name == "gpt2" else CASES[name].build()
    blocks = list(LayerStack(base).blocks)
    stack = LayerStack(get_peft_model(base, config))
    assert "prompt_encoder" in stack["embeddings"].prefixes
    assert [layer.prefixes[0].endswith(old.prefixes[0]) for layer, old in zip(stack.blocks, blocks, strict=True)]
    assert not any("prompt" in p for layer in list(stack)[1:] for p in layer.prefixes)


class ShortCut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model, self.prompt = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x: Any, plain: bool = False) -> Any:
        if plain:
            return self.model(x)
        x = self.prompt(x)
        return self.model(x)


class Ends(ShortCut):
    def forward(self, x: Any, plain: bool = False) -> Any:
        if plain:
            return self.model(x)
        return self.prompt(x)


def test_the_branch_without_an_early_return_determines_the_order() -> None:
    assert use_order(ShortCut()).order == ["prompt", "model"]
    assert use_order(Ends()).order == ["model", "prompt"]


@pytest.mark.parametrize("name", ["bert", "vit"])
def test_quantised_weights_count_as_weights(name: str) -> None:
    module = CASES[name].build()
    before = prefixes(LayerStack(module))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        quantised = torch.ao.quantization.quantize_dynamic(module, {nn.Linear}, dtype=torch.qint8)
    stack = LayerStack(quantised)
    assert prefixes(stack) == before
    assert partition_errors(stack) == []
    assert stack.assumptions == ()


class Packed(nn.Module):
    """A linear layer with its integer weight in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("qweight", torch.zeros(32, 32, dtype=torch.int32))
        self.scales = nn.Parameter(torch.ones(32))


def test_integer_weights_in_buffers_count_as_weights() -> None:
    def block() -> nn.Module:
        return nn.Sequential(nn.LayerNorm(32), Packed(), Packed())

    module = nn.ModuleDict({"embedding": nn.Embedding(9, 32), "layers": nn.ModuleList([block() for _ in range(3)])})
    assert LayerStack(module).names == ["embeddings", "0", "1", "2"]


def test_weights_that_are_no_parameters_alone_make_no_layers() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        module = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 4)), {nn.Linear})
    with pytest.raises(ValueError, match="Sequential has no parameters"):
        LayerStack(module)
