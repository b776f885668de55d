"""Layers of timm's and torchvision's models, where those are installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from layer_checks import gradient_errors, leak_errors, order_errors, partition_errors
from layer_models import numbered, staged
from torch import nn

from lightning_freeze.layers import LayerStack

DEPTHS = [2, 2, 3, 1]


def check(module: nn.Module, size: int, blocks: dict[str, str], embeddings: set[str], head: set[str]) -> LayerStack:
    """The blocks are these, and embeddings and head hold modules and parameters of these names."""
    stack = LayerStack(module)
    inputs = (torch.rand(2, 3, size, size),)
    assert stack.names == ["embeddings", *blocks, "head"]
    for name, path in blocks.items():
        assert module.get_submodule(path) in stack[name].modules()
    for layer, prefixes in (("embeddings", embeddings), ("head", head)):
        assert {name.split(".")[0] for name, _ in stack[layer].named_parameters()} == prefixes
    assert partition_errors(stack) == []
    assert order_errors(stack, inputs) == []
    assert gradient_errors(stack, inputs) == []
    assert leak_errors(stack, inputs) == []
    return stack


@pytest.fixture
def create() -> Callable[..., nn.Module]:
    timm: Any = pytest.importorskip("timm")
    return timm.create_model  # type: ignore[no-any-return]


@pytest.fixture
def vision() -> Any:
    return pytest.importorskip("torchvision").models


def test_timm_vit(create: Callable[..., nn.Module]) -> None:
    module = create("vit_tiny_patch16_224", img_size=32, depth=4, num_classes=5)
    stack = check(module, 32, numbered("blocks", 4), {"cls_token", "pos_embed", "patch_embed"}, {"norm", "head"})
    for name in ("pos_drop", "patch_drop", "norm_pre"):
        assert stack.layer_of_module(module.get_submodule(name)) is stack["embeddings"]


def test_timm_swin(create: Callable[..., nn.Module]) -> None:
    module = create(
        "swin_tiny_patch4_window7_224",
        img_size=64,
        window_size=2,
        embed_dim=16,
        depths=tuple(DEPTHS),
        num_heads=(2, 2, 4, 4),
    )
    stack = check(module, 64, staged("layers.{s}.blocks.{b}", DEPTHS), {"patch_embed"}, {"norm", "head"})
    for stage, first in ((1, "2"), (2, "4"), (3, "7")):
        assert stack.layer_of_module(module.get_submodule(f"layers.{stage}.downsample")) is stack[first]


def test_timm_convnext(create: Callable[..., nn.Module]) -> None:
    module = create("convnext_atto", depths=(2, 2, 3, 2), dims=(8, 16, 24, 32))
    check(module, 64, staged("stages.{s}.blocks.{b}", [2, 2, 3, 2]), {"stem"}, {"head"})


def test_torchvision_vit(vision: Any) -> None:
    module = vision.VisionTransformer(32, 8, 4, 4, 32, 48)
    blocks = {str(i): f"encoder.layers.encoder_layer_{i}" for i in range(4)}
    check(module, 32, blocks, {"conv_proj", "class_token", "encoder"}, {"encoder", "heads"})


def test_torchvision_swin(vision: Any) -> None:
    module = vision.SwinTransformer([4, 4], 16, DEPTHS, [2, 2, 4, 4], [2, 2])
    places = [(2 * stage + 1, block) for stage, depth in enumerate(DEPTHS) for block in range(depth)]
    blocks = {str(i): f"features.{stage}.{block}" for i, (stage, block) in enumerate(places)}
    check(module, 64, blocks, {"features"}, {"norm", "head"})


def test_torchvision_resnet(vision: Any) -> None:
    places = [(stage, block) for stage, depth in enumerate([3, 4, 6, 3], start=1) for block in range(depth)]
    blocks = {str(i): f"layer{stage}.{block}" for i, (stage, block) in enumerate(places)}
    check(vision.resnet50(), 64, blocks, {"conv1", "bn1"}, {"fc"})
