"""The selector grammar, on a model with twelve blocks and on one with two towers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from layer_models import CASES, COMMON
from torch import nn
from transformers import BertConfig, BertForMaskedLM, BertModel

from lightning_freeze.layers import LayerStack

BLOCKS = [str(i) for i in range(12)]


@pytest.fixture(scope="module")
def stack() -> LayerStack:
    return LayerStack(BertModel(BertConfig(**{**COMMON, "num_hidden_layers": 12})))


@pytest.fixture(scope="module")
def bart() -> LayerStack:
    return LayerStack(CASES["bart"].build())


def names(stack: LayerStack, selector: str) -> list[str]:
    return [layer.name for layer in stack.select(selector).layers]


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("embeddings", ["embeddings"]),
        ("head", ["head"]),
        ("3", ["3"]),
        ("-1", ["11"]),
        ("-12", ["0"]),
        (":8", BLOCKS[:8]),
        ("4:8", BLOCKS[4:8]),
        ("-2:", BLOCKS[-2:]),
        ("::2", BLOCKS[::2]),
        ("1:8:3", BLOCKS[1:8:3]),
        ("::-1", BLOCKS),
        (":", BLOCKS),
        (":99", BLOCKS),
        ("all", ["embeddings", *BLOCKS, "head"]),
        ("100%", ["embeddings", *BLOCKS]),
        ("75%", ["embeddings", *BLOCKS[:9]]),
        ("62.5%", ["embeddings", *BLOCKS[:7]]),
        ("37.5%", ["embeddings", *BLOCKS[:4]]),
        ("37.6%", ["embeddings", *BLOCKS[:5]]),
        ("1%", ["embeddings"]),
        ("head,embeddings", ["embeddings", "head"]),
        ("  embeddings ,\t:2 , head ", ["embeddings", "0", "1", "head"]),
        (":3,1:4,2", BLOCKS[:4]),
        ("*.LayerNorm.*", []),
    ],
)
def test_what_a_selector_selects(stack: LayerStack, selector: str, expected: list[str]) -> None:
    assert names(stack, selector) == expected


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("encoder", ["encoder.0", "encoder.1", "encoder.2"]),
        ("encoder.:2", ["encoder.0", "encoder.1"]),
        ("decoder.-1", ["decoder.3"]),
        ("decoder.0", ["decoder.0"]),
        ("decoder.::2", ["decoder.0", "decoder.2"]),
        ("2:4", ["encoder.2", "decoder.0"]),
        ("3", ["decoder.0"]),
        ("50%", ["embeddings", "encoder.0", "encoder.1", "encoder.2"]),
    ],
)
def test_what_a_selector_selects_of_two_towers(bart: LayerStack, selector: str, expected: list[str]) -> None:
    assert names(bart, selector) == expected


@pytest.mark.parametrize(
    ("selector", "why"),
    [
        ("", "is empty"),
        ("   ", "is empty"),
        ("0,,1", "has an empty term"),
        ("0,", "has an empty term"),
        ("12", "out of range: the blocks are numbered 0 to 11"),
        ("-13", "out of range"),
        ("5:3", "selects nothing: there are 12 blocks"),
        ("12:", "selects nothing"),
        ("::0", "must not be 0"),
        ("1:2:3:4", "names no layer"),
        ("a:b", "names no layer"),
        ("+3", "names no layer"),
        ("3.5", "names no layer"),
        ("0%", "percentage above 0%"),
        ("101%", "percentage above 0%"),
        ("-5%", "percentage above 0%"),
        ("x%", "percentage above 0%"),
        ("embedings", "Did you mean 'embeddings'"),
        ("haed", "Did you mean 'head'"),
        ("Head", "Did you mean 'head'"),
        ("encoder.:6", "names no layer"),
        ("*.Layernorm.*", "selects nothing: no parameter's name matches"),
        ("encoder.layer.3.output.dense.weigt", r"Did you mean 'encoder\.layer\.3\.output\.dense\.weight'"),
        (":8,nonsense", "'nonsense' names no layer"),
    ],
)
def test_a_selector_that_selects_nothing_is_an_error(stack: LayerStack, selector: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as error:
        stack.select(selector)
    assert "Layers: embeddings, 0 ... 11, head." in str(error.value)


@pytest.mark.parametrize(
    ("selector", "why"),
    [
        ("encoder.7", "out of range: the blocks of 'encoder' are numbered 0 to 2"),
        ("encoder.3:", "there are 3 blocks of 'encoder'"),
        ("encodr", "Did you mean 'encoder'"),
        ("encoder.", "Did you mean 'encoder"),
        ("head", "has no such layer"),
    ],
)
def test_errors_of_a_model_with_towers(bart: LayerStack, selector: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as error:
        bart.select(selector)
    assert "encoder.0 ... encoder.2, decoder.0 ... decoder.3" in str(error.value)


@pytest.mark.parametrize("selector", [None, 3, ["head"]])
def test_a_selector_is_a_string(stack: LayerStack, selector: Any) -> None:
    with pytest.raises(ValueError, match="A selector is a string"):
        stack.select(selector)


def test_globs_select_parameters_and_whole_layers_come_in_once(stack: LayerStack) -> None:
    norms = [p for name, p in stack.module.named_parameters() if ".LayerNorm." in name]
    assert list(stack.select("*.LayerNorm.*").parameters) == norms
    both = stack.select("*.LayerNorm.*,embeddings")
    assert len(both.parameters) == len(set(both.parameters)) == len(norms) + 3
    assert [layer.name for layer in both.layers] == ["embeddings"]


def test_globs_see_every_name_of_a_tied_weight() -> None:
    module = BertForMaskedLM(BertConfig(**COMMON))
    selected = LayerStack(module).select("cls.predictions.decoder.weight").parameters
    assert selected == (module.bert.embeddings.word_embeddings.weight,)


def test_parameters_come_in_the_order_of_the_stack(stack: LayerStack) -> None:
    expected = [p for layer in stack for p in layer.parameters()]
    assert list(stack.select("head,:,embeddings").parameters) == expected


def test_modules_of_whole_layers_include_dropout(stack: LayerStack) -> None:
    modules = stack.select(":1").modules
    assert set(stack["0"].modules()) == set(modules)
    assert any(isinstance(module, nn.Dropout) for module in modules)


def test_a_container_follows_once_all_that_it_holds_is_selected(stack: LayerStack) -> None:
    encoder = stack.module.encoder
    assert encoder not in stack.select(":11").modules
    assert encoder in stack.select(":").modules
    assert stack.module not in stack.select(":").modules


def test_parts_of_layers_that_train_stay_in_their_mode(stack: LayerStack) -> None:
    assert stack.select("*.LayerNorm.*").modules == ()


def test_modules_within_agrees_with_select(stack: LayerStack) -> None:
    for selector in (":4", "all", "embeddings,:", "*.bias", "75%,*.bias"):
        selection = stack.select(selector)
        assert set(stack.modules_within(selection.parameters)) == set(selection.modules)


def test_a_tied_head_stays_in_its_mode_until_what_it_borrows_is_frozen() -> None:
    module = CASES["bart"].build()
    head = nn.Module()
    head.model, head.lm_head = module, nn.Linear(32, 100, bias=False)
    head.lm_head.weight = module.shared.weight
    stack = LayerStack(head)
    assert stack["head"].parameters() == []
    assert head.lm_head not in stack.modules_within(stack.select("encoder").parameters)
    assert head.lm_head in stack.modules_within(stack.select("embeddings").parameters)


def test_selecting_changes_nothing(stack: LayerStack) -> None:
    stack.module.train()
    before = [p.requires_grad for p in stack.module.parameters()]
    stack.select("all,*.bias")
    assert [p.requires_grad for p in stack.module.parameters()] == before
    assert all(module.training for module in stack.module.modules())


def test_model_without_blocks() -> None:
    stack = LayerStack(CASES["bert-no-block"].build())
    with pytest.raises(ValueError, match="there are no blocks"):
        stack.select("0")
    assert names(stack, "75%") == ["embeddings"]


def test_percentage_of_a_model_without_embeddings() -> None:
    stack = LayerStack(nn.Sequential(*[nn.Linear(2, 2) for _ in range(4)]))
    assert names(stack, "50%") == ["0", "1"]
    with pytest.raises(ValueError, match="selects nothing of 4 blocks"):
        stack.select("10%")
    with pytest.raises(ValueError, match="no such layer"):
        stack.select("embeddings")
    assert stack.select("0").parameters == tuple(stack.module[0].parameters())
    assert torch.is_tensor(stack.select("all").parameters[0])


class MessagePassing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inputs, self.hidden = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.hidden(torch.relu(self.inputs(x)))


class Graphs(nn.Module):
    """A module whose parts have names of their own and are no blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.message_passing = MessagePassing()
        self.agg = nn.Identity()
        self.predictor = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.predictor(self.agg(self.message_passing(x)))


@pytest.mark.parametrize("compiled", [False, True])
def test_the_name_of_a_module_selects_everything_below_it(compiled: bool) -> None:
    module = Graphs()
    if compiled:
        module.message_passing = torch.compile(module.message_passing)  # type: ignore[assignment]
    stack = LayerStack(module)
    wanted = {id(p) for p in module.message_passing.parameters()}
    for selector in ("message_passing", "message_passing.*"):
        assert {id(p) for p in stack.select(selector).parameters} == wanted
    assert len(stack.select("message_passing,predictor.1").parameters) == len(wanted) + 2


def test_the_name_of_a_nested_module_selects_what_is_below_it(stack: LayerStack) -> None:
    chosen = stack.select("encoder.layer.3.attention").parameters
    assert chosen == stack.select("encoder.layer.3.attention.*").parameters
    assert stack.select("encoder.layer.3").parameters == stack.select("3").parameters


def test_a_layer_or_a_tower_of_the_same_name_comes_first(bart: LayerStack) -> None:
    assert names(bart, "encoder") == ["encoder.0", "encoder.1", "encoder.2"]
    stack = LayerStack(Graphs(), groups={"predictor": ["message_passing"], "rest": ["predictor"]})
    assert names(stack, "predictor") == ["predictor"]
    assert stack.select("predictor").parameters == tuple(stack["predictor"].parameters())


def test_a_module_that_cannot_be_selected_is_an_error_that_says_why() -> None:
    stack = LayerStack(Graphs(), groups={"body": ["predictor"]})
    with pytest.raises(ValueError, match="in no group"):
        stack.select("message_passing")
    with pytest.raises(ValueError, match="that module has no parameters"):
        stack.select("agg")
    with pytest.raises(ValueError, match="Did you mean 'message_passing'"):
        LayerStack(Graphs()).select("mesage_passing")
