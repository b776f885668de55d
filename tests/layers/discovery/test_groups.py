"""Layers from an explicit map, and from a module that defines its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from layer_models import CASES, ResNet
from torch import nn

from lightning_freeze.layers import LayerStack

GROUPS = {"stem": ["conv1", "bn1"], "body": ["layer1", "layer2", "layer3"], "head": "fc"}


def test_layers_are_the_groups_in_the_given_order() -> None:
    module = ResNet()
    stack = LayerStack(module, groups=GROUPS)
    assert stack.names == ["stem", "body", "head"]
    assert [layer.kind for layer in stack] == ["group", "group", "head"]
    assert stack["stem"].parameters() == [*module.conv1.parameters(), *module.bn1.parameters()]
    assert module.layer2[0].bn1 in stack["body"].modules()


def test_what_the_map_leaves_out_is_in_no_layer() -> None:
    module = ResNet()
    stack = LayerStack(module, groups=GROUPS)
    assert [name for name, _ in stack.unassigned] == [f"layer4.{n}" for n, _ in module.layer4.named_parameters()]
    assert stack.layer_of(module.layer4[0].conv1.weight) is None
    assert stack.layer_of_module(module.layer4) is None
    assert "in no layer" in stack.describe()
    with pytest.raises(ValueError, match=r"layer4\.\*.*in no group"):
        stack.select("layer4.*")
    assert module not in stack.select("all").modules


def test_every_group_but_embeddings_and_head_counts_as_a_block() -> None:
    stack = LayerStack(ResNet(), groups={"embeddings": "conv1", "a": "layer1", "b": "layer2", "head": "fc"})
    assert [layer.name for layer in stack.select(":1").layers] == ["a"]
    assert [layer.name for layer in stack.select("-1").layers] == ["b"]
    assert [layer.name for layer in stack.select("50%").layers] == ["embeddings", "a"]


def test_a_single_parameter_is_a_prefix() -> None:
    stack = LayerStack(ResNet(), groups={"weight": "conv1.weight", "rest": ["layer1"]})
    assert [name for name, _ in stack["weight"].named_parameters()] == ["conv1.weight"]
    assert stack["weight"].modules() == []


def test_prefixes_match_whole_components() -> None:
    module = nn.ModuleDict({"enc": nn.Linear(2, 2), "encoder": nn.Linear(2, 2)})
    stack = LayerStack(module, groups={"a": "enc"})
    assert [name for name, _ in stack["a"].named_parameters()] == ["enc.weight", "enc.bias"]


@pytest.mark.slow
def test_compiled_module_takes_the_plain_names() -> None:
    stack = LayerStack(torch.compile(ResNet()), groups=GROUPS)
    assert stack["head"].named_parameters()[0][0] == "_orig_mod.fc.weight"


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({}, "groups is empty"),
        ({"a": []}, "Group 'a' is empty"),
        ({"a": ["layer2.0.conv11"]}, r"'layer2\.0\.conv11'.*Did you mean 'layer2\.0\.conv1'"),
        ({"a": ["lay"]}, "no module or parameter is called 'lay'"),
        ({"a": "conv1", "b": "conv1"}, "'conv1' stands in groups 'a' and 'b'"),
        ({"a": "layer1", "b": "layer1.0"}, r"'layer1\.0' stands in groups 'a' and 'b'"),
        ({"a": "layer1.0.conv1", "b": "layer1"}, r"'layer1\.0\.conv1' stands in groups 'a' and 'b'"),
        ({"a": ["conv1", "conv1.weight"]}, r"'conv1\.weight' stands in group 'a' twice"),
        ({"all": "conv1"}, "'all' is no name"),
        ({"a,b": "conv1"}, "'a,b' is no name"),
        ({"": "conv1"}, "'' is no name"),
        ({"a": [3]}, "Group 'a' holds 3"),
        (["conv1"], "must be a map"),
    ],
)
def test_a_wrong_map_is_refused(groups: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LayerStack(ResNet(), groups=groups)


class WithMap(ResNet):
    def layer_stack(self) -> Any:
        return GROUPS


class WithStack(ResNet):
    """Asks for the usual answer and passes it on."""

    def layer_stack(self) -> Any:
        return LayerStack(self)


class WithNonsense(ResNet):
    def layer_stack(self) -> Any:
        return 3


class WithNothing(ResNet):
    def layer_stack(self) -> Any:
        return None


def test_a_module_may_name_its_layers() -> None:
    assert LayerStack(WithMap()).names == list(GROUPS)
    assert LayerStack(WithMap()).from_groups


def test_groups_win_over_the_module() -> None:
    assert LayerStack(WithMap(), groups={"a": "conv1"}).names == ["a"]


def test_a_module_may_ask_for_its_own_layers() -> None:
    assert LayerStack(WithStack()).names == LayerStack(ResNet()).names
    assert not LayerStack(WithStack()).from_groups


def test_the_module_inside_a_wrapper_is_asked() -> None:
    stack = LayerStack(torch.compile(WithMap()))
    assert stack.names == list(GROUPS)
    assert stack["head"].named_parameters()[0][0] == "_orig_mod.fc.weight"


def test_a_module_may_hand_out_the_layers_of_a_part() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.extra = CASES["bert"].build(), nn.Linear(2, 2)

        def layer_stack(self) -> LayerStack:
            return LayerStack(self.encoder)

    stack = LayerStack(Outer())
    assert stack.names == ["embeddings", "0", "1", "2", "3", "head"]
    assert stack["0"].named_parameters()[0][0].startswith("encoder.encoder.layer.0.")
    assert [name for name, _ in stack.unassigned] == ["extra.weight", "extra.bias"]


@pytest.mark.parametrize(("module", "message"), [(WithNonsense, "got int: 3"), (WithNothing, "returned None")])
def test_a_wrong_answer_is_refused(module: type[nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LayerStack(module())


def test_layers_of_another_module_are_refused() -> None:
    class Elsewhere(ResNet):
        def layer_stack(self) -> LayerStack:
            return LayerStack(ResNet())

    with pytest.raises(ValueError, match="not part of it"):
        LayerStack(Elsewhere())
