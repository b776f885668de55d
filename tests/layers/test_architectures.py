"""The layers of popular and difficult architectures, against what their papers and code say."""

from __future__ import annotations

import pytest
import torch
from layer_checks import gradient_errors, leak_errors, order_errors, partition_errors
from layer_models import CASES as POPULAR
from layer_models import Case
from layer_models_hard import HARD

from lightning_freeze.layers import LayerStack

CASES = {**POPULAR, **HARD}
# The feature extractor asks for gradients with respect to the sound itself while it is in training mode.
ASKS_FOR_INPUT_GRADIENTS = {"wav2vec2", "wav2vec2-final-norm", "hubert"}
REPEATS = {"albert": 12, "universal-transformer": 6}


@pytest.fixture(params=CASES, scope="module")
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def case(name: str) -> Case:
    return CASES[name]


@pytest.fixture(scope="module")
def stack(case: Case) -> LayerStack:
    torch.manual_seed(0)
    return LayerStack(case.build())


def test_names_of_blocks_in_order(case: Case, stack: LayerStack) -> None:
    assert [layer.name for layer in stack.blocks] == list(case.blocks)
    assert {layer.name for layer in stack} == {*case.blocks, *case.others}


def test_every_layer_owns_what_it_should(case: Case, stack: LayerStack) -> None:
    expected = {block: [path, *case.joined.get(block, [])] for block, path in case.blocks.items()} | case.others
    for name, prefixes in expected.items():
        owned = {parameter for parameter, _ in stack[name].named_parameters()}
        everything = {parameter for parameter, _ in stack.module.named_parameters()}
        assert owned == {p for p in everything if any(p == x or p.startswith(f"{x}.") for x in prefixes)}, name


def test_every_parameter_stands_in_exactly_one_layer(stack: LayerStack) -> None:
    assert partition_errors(stack) == []


def test_layers_run_in_the_order_of_the_stack(case: Case, stack: LayerStack) -> None:
    assert order_errors(stack, case.inputs()) == []


@pytest.mark.fast_cases(17)
def test_gradients_arrive_in_the_unfrozen_layers_only(case: Case, stack: LayerStack) -> None:
    assert gradient_errors(stack, case.inputs()) == []


@pytest.mark.fast_cases(17)
def test_backward_stops_at_the_frozen_prefix(name: str, case: Case) -> None:
    torch.manual_seed(0)
    leaks = leak_errors(LayerStack(case.build()), case.inputs())  # runs of other tests would draw other dropped layers
    assert bool(leaks) == (name in ASKS_FOR_INPUT_GRADIENTS), leaks


def test_repeats(name: str, stack: LayerStack) -> None:
    assert [layer.repeats for layer in stack.blocks] == [REPEATS.get(name, 1)] * len(stack.blocks)
    assert ("shared by" in stack.describe()) == (name in REPEATS)


def test_the_checks_notice_a_wrong_order() -> None:
    case = CASES["bert"]
    groups = {"head": ["pooler"], "body": ["encoder"], "embeddings": ["embeddings"]}
    stack = LayerStack(case.build(), groups=groups)
    assert order_errors(stack, case.inputs())
    assert leak_errors(stack, case.inputs())


def test_the_checks_notice_a_missing_parameter() -> None:
    stack = LayerStack(CASES["bert"].build(), groups={"body": "encoder"})
    assert partition_errors(stack)
