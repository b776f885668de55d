"""``LayerStack`` itself: lookup, identity, modules without parameters, models without data."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from layer_checks import function_calls
from layer_models import CASES, COMMON, small_block
from layer_models_hard import HARD
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, BertModel, GPT2Config, GPT2Model

from lightning_freeze.layers import Layer, LayerStack


@pytest.fixture
def stack() -> LayerStack:
    return LayerStack(CASES["bert-classifier"].build())


def test_lookup(stack: LayerStack) -> None:
    assert len(stack) == 6
    assert stack["0"] is stack[1] is list(stack)[1] is stack.blocks[0]
    assert stack["head"] is stack[-1]
    assert "3" in stack
    assert stack["3"] in stack
    assert "4" not in stack
    with pytest.raises(KeyError, match="Did you mean 'head'"):
        stack["haed"]


def test_kinds(stack: LayerStack) -> None:
    assert [layer.kind for layer in stack] == ["embeddings", *["block"] * 4, "head"]
    assert [layer.index for layer in stack] == list(range(6))


def test_layer_of_goes_by_identity(stack: LayerStack) -> None:
    weight = stack.module.classifier.weight
    assert stack.layer_of(weight) is stack["head"]
    assert stack.layer_of(nn.Parameter(weight.detach().clone())) is None


def test_names_are_the_modules_own(stack: LayerStack) -> None:
    pairs = [pair for layer in stack for pair in layer.named_parameters()]
    assert dict(pairs) == dict(stack.module.named_parameters())


@pytest.mark.parametrize(
    ("build", "module", "layer"),
    [
        (lambda: GPT2Model(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=100)), "drop", "embeddings"),
        (lambda: BertForSequenceClassification(BertConfig(**COMMON)), "dropout", "head"),
        (lambda: BertModel(BertConfig(**COMMON)), "encoder.layer.2.output.dropout", "2"),
        (CASES["mlp"].build, "3", "1"),
        (CASES["resnet"].build, "relu", "embeddings"),
        (CASES["t5"].build, "decoder.dropout", "decoder.0"),
        (CASES["wav2vec2"].build, "wav2vec2.encoder.dropout", "embeddings"),
    ],
)
def test_modules_without_parameters_have_a_layer(build: Callable[[], nn.Module], module: str, layer: str) -> None:
    stack = LayerStack(build())
    found = stack.layer_of_module(stack.module.get_submodule(module))
    assert found is not None
    assert found.name == layer


@pytest.mark.parametrize("name", ["bert", "bert.encoder", "bert.encoder.layer"])
def test_modules_that_span_layers_have_none(stack: LayerStack, name: str) -> None:
    assert stack.layer_of_module(stack.module.get_submodule(name)) is None


def test_leading_and_trailing_modules_without_parameters_join_the_blocks() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2), nn.Softmax(-1))
    stack = LayerStack(module)
    assert stack.names == ["0", "1"]
    assert set(stack["0"].modules()) == {module[0], module[1], module[2]}
    assert set(stack["1"].modules()) == {module[3], module[4]}


def test_plain_module_is_one_block() -> None:
    stack = LayerStack(nn.Linear(2, 2))
    assert stack.names == ["0"]
    assert [name for name, _ in stack["0"].named_parameters()] == ["weight", "bias"]


@pytest.mark.parametrize("module", [nn.Sequential(), nn.ReLU(), nn.Sequential(nn.Dropout(), nn.ReLU())])
def test_module_without_parameters_is_refused(module: nn.Module) -> None:
    with pytest.raises(ValueError, match=f"{type(module).__name__} has no parameters"):
        LayerStack(module)


def test_only_modules_have_layers() -> None:
    with pytest.raises(ValueError, match=r"needs a torch\.nn\.Module, got str"):
        LayerStack("bert")  # type: ignore[arg-type]


def test_meta_device_gives_the_same_layers(stack: LayerStack) -> None:
    with torch.device("meta"):
        module = CASES["bert-classifier"].build()
    assert LayerStack(module).signature() == stack.signature()


def test_parameters_are_looked_up_after_materialisation() -> None:
    with torch.device("meta"):
        module = CASES["bert"].build()
    stack = LayerStack(module)
    stale = stack["0"].parameters()[0]
    module.to_empty(device="cpu")
    fresh = module.encoder.layer[0].attention.self.query.weight
    assert fresh is not stale
    assert stack["0"].parameters()[0].device.type == "cpu"
    assert stack.layer_of(fresh) is stack["0"]
    assert stack.layer_of(stale) is None


def test_uninitialized_parameters() -> None:
    stack = LayerStack(nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.LazyLinear(2)))
    assert stack.names == ["0", "1"]
    assert stack["0"].numel == 0
    stack.module(torch.rand(2, 3))
    assert stack["0"].numel == 16


def test_one_block_owns_its_container() -> None:
    stack = LayerStack(CASES["bert-one-block"].build())
    assert stack.layer_of_module(stack.module.encoder) is stack["0"]
    assert stack.layer_of_module(stack.module) is None


def test_signature_is_plain_data(stack: LayerStack) -> None:
    signature = stack.signature()
    assert json.loads(json.dumps(signature)) == signature
    assert signature[0]["layer"] == "embeddings"
    assert signature != LayerStack(CASES["bert"].build()).signature()


def test_describe_and_repr(stack: LayerStack) -> None:
    total = sum(p.numel() for p in stack.module.parameters())
    assert stack.describe() == (
        f"BertForSequenceClassification: 6 layers (embeddings, 0 ... 3, head), {total:,} parameters"
    )
    assert repr(stack) == "LayerStack(embeddings, 0 ... 3, head)"
    assert repr(stack["0"]) == "Layer('0', 16 parameters)"


def test_a_user_may_subclass_nothing_and_still_index_by_layer(stack: LayerStack) -> None:
    layer: Layer = stack["1"]
    assert layer.numel == sum(p.numel() for p in stack.module.bert.encoder.layer[1].parameters())


def test_work_grows_in_proportion_to_the_number_of_modules() -> None:
    calls = {}
    for blocks in (45, 90, 180):
        module = nn.TransformerEncoder(small_block(), blocks, enable_nested_tensor=False)
        LayerStack(module)  # what is read from source once is kept
        calls[blocks] = function_calls(lambda module=module: LayerStack(module))
        # 204 to 220 were counted.
        assert calls[blocks] < 300 * len(list(module.modules()))
    assert len(list(module.modules())) > 900
    assert calls[180] < 4.5 * calls[45]


def test_an_ambiguous_module_says_what_was_assumed() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.three = (nn.Linear(4, 4) for _ in range(3))

    assert "no list of blocks was found" in LayerStack(Branches()).describe()
    assert "does not tell an order" in LayerStack(Branches()).describe()
    assert "take turns" in LayerStack(HARD["idefics"].build()).describe()
    assert "vision, text: not each feeds the next" in LayerStack(CASES["clip"].build()).describe()
    assert LayerStack(CASES["bert"].build()).assumptions == ()


def test_a_wrapper_passes_the_question_for_the_layers_on() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def layer_stack(self) -> dict[str, str]:
            return {"second": "b", "first": "a"}

    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base = Own()

        def __getattr__(self, name: str) -> object:
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(self.base, name)

    assert LayerStack(Wrapper()).names == ["second", "first"]


class GradientCheckpointingLayer(nn.Module):
    """Known by its name, as transformers marks its blocks."""


class Bridge(GradientCheckpointingLayer):
    def __init__(self, convolutions: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv1d(4, 4, 1) for _ in range(convolutions))


def test_the_small_ones_among_marked_blocks_are_blocks_too() -> None:
    module = nn.Module()
    module.bridge = nn.ModuleList([Bridge(1), Bridge(1), Bridge(3), Bridge(3)])
    assert [layer.prefixes for layer in LayerStack(module).blocks] == [(f"bridge.{i}",) for i in range(4)]


class Step(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(4), nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(self.up(self.norm(x)))


class StemAndLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.ModuleList(Step() for _ in range(2))
        self.layers = nn.ModuleList(Step() for _ in range(24))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.stem:
            x = layer(x)
        for layer in self.layers:
            x = layer(x)
        return x


def test_a_short_stack_of_the_blocks_of_a_long_one_is_a_stack_too() -> None:
    towers = LayerStack(StemAndLayers()).towers
    assert {name: len(blocks) for name, blocks in towers.items()} == {"stem": 2, "layers": 24}
