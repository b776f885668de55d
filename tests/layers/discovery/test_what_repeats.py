"""Repeated modules are blocks: named children of a stage in a chain, and short lists after the main one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from layer_checks import gradient_errors, order_errors, partition_errors
from layer_models import small_block
from torch import Tensor, nn

from lightning_freeze import LayerStack


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(torch.relu(self.fc1(self.norm(x))))


class Stage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.b1, self.b2, self.b3 = Residual(), Residual(), Residual()
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.b1(x)
        x = self.activation(self.b2(x))
        return self.b3(x)


class ByName(Stage):
    def forward(self, x: Tensor) -> Tensor:
        for i in range(1, 4):
            x = getattr(self, f"b{i}")(x)
        return x


class Branches(Stage):
    def forward(self, x: Tensor) -> Tensor:
        return self.b1(x) + self.b2(x) + self.b3(x)


class Gathered(Stage):
    def forward(self, x: Tensor) -> Tensor:
        found = []
        for i in range(1, 4):
            found.append(getattr(self, f"b{i}")(x))
        return torch.stack(found).sum(0)


class Macaron(nn.Module):
    """Conformer: two feed-forward halves around attention."""

    def __init__(self) -> None:
        super().__init__()
        self.ffn1, self.attention, self.ffn2 = Residual(), nn.Linear(8, 8), Residual()

    def forward(self, x: Tensor) -> Tensor:
        return self.ffn2(x + self.attention(self.ffn1(x)))


class Net(nn.Module):
    def __init__(self, stage: type[nn.Module], listed: bool) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(8, 8), nn.Linear(8, 2)
        if listed:
            self.stages = nn.ModuleList([stage(), stage()])
        else:
            self.stage1, self.stage2 = stage(), stage()
        self._listed = listed

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self._listed:
            for stage in self.stages:
                x = stage(x)
        else:
            x = self.stage2(self.stage1(x))
        return self.head(x)


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize(("stage", "blocks"), [(Stage, 6), (ByName, 6), (Branches, 2), (Gathered, 2), (Macaron, 2)])
def test_named_children_are_blocks_if_they_run_one_after_the_other(
    stage: type[nn.Module], blocks: int, listed: bool
) -> None:
    stack = LayerStack(Net(stage, listed))
    assert len(stack.blocks) == blocks
    assert stack.names == ["embeddings", *map(str, range(blocks)), "head"]
    assert [layer.height for layer in stack] == list(range(blocks + 1, -1, -1))
    inputs = (torch.rand(2, 8),)
    assert partition_errors(stack) == order_errors(stack, inputs) == gradient_errors(stack, inputs) == []


class ClassAttention(Residual):
    def forward(self, x: Tensor, token: Tensor | None = None) -> Tensor:
        assert token is not None
        return token + super().forward(x + token)


class WithClassAttention(nn.Module):
    """CaiT: blocks on the patches, then two that only change the class token."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.patch_embed = nn.Linear(8, 8)
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.blocks = nn.Sequential(*(Residual() for _ in range(depth)))
        self.blocks_token_only = nn.ModuleList([ClassAttention() for _ in range(2)])
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.patch_embed(x))
        token = self.token.expand(len(x), -1, -1)
        for block in self.blocks_token_only:
            token = block(x, token)
        return self.head(self.norm(token))


class NamedLikeAHead(WithClassAttention):
    def __init__(self, depth: int) -> None:
        super().__init__(depth)
        self.cls_blocks = self.blocks_token_only
        del self.blocks_token_only

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.patch_embed(x))
        token = self.token.expand(len(x), -1, -1)
        for block in self.cls_blocks:
            token = block(x, token)
        return self.head(self.norm(token))


@pytest.mark.parametrize("depth", [2, 3, 6, 24])
@pytest.mark.parametrize(("build", "name"), [(WithClassAttention, "blocks_token_only"), (NamedLikeAHead, "cls_blocks")])
def test_a_short_list_behind_the_blocks_is_blocks_in_every_size(build: Any, name: str, depth: int) -> None:
    stack = LayerStack(build(depth))
    expected = [*(f"blocks.{i}" for i in range(depth)), f"{name}.0", f"{name}.1"]
    assert [layer.name for layer in stack.blocks] == expected
    assert [layer.height for layer in stack.blocks] == list(range(depth + 2, 0, -1))
    assert stack["head"].prefixes[-1] == "head"
    inputs = (torch.rand(2, 3, 8),)
    assert partition_errors(stack) == order_errors(stack, inputs) == []


class Merging(nn.Module):
    """Takes an output of every fourth block through a merger of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Residual() for _ in range(12)])
        self.mergers = nn.ModuleList([small_block(8) for _ in range(3)])
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        found = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i % 4 == 3:
                found.append(self.mergers[i // 4](x))
        return self.head(x), found


def test_mergers_beside_the_blocks_are_no_blocks() -> None:
    assert [layer.name for layer in LayerStack(Merging()).blocks] == [str(i) for i in range(12)]
