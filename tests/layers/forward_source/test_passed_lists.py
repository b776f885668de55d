"""The order of layers that are selected by arguments of calls, passed to other code, or run in branches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from layer_checks import gradient_errors, order_errors, partition_errors
from layer_models import small_block
from torch import Tensor, nn

from lightning_freeze.layers import LayerStack
from lightning_freeze.layers.forward_source.reader import use_order


class Parts(nn.Module):
    """Registers ``a`` to ``d`` and the lists ``blocks`` and ``norms``; subclasses use them."""

    def __init__(self) -> None:
        super().__init__()
        for name in "abcd":
            setattr(self, name, nn.Linear(2, 2))
        self.blocks = nn.ModuleList([nn.Linear(2, 2) for _ in range(3)])
        self.norms = nn.ModuleList([nn.Linear(2, 2) for _ in range(3)])
        self.depth = 3


class ByHelper(Parts):
    def forward(self, x: Any) -> Any:
        for number in range(self.depth):
            x = self.blocks[number](x)
            if x.mean() > 0:
                x = self.finish(x, number=number)
        return x

    def finish(self, x: Any, number: int) -> Any:
        return self.norms[number](x) if number < self.depth - 1 else self.a(x)


class OnlyByHelper(Parts):
    def forward(self, x: Any) -> Any:
        for number in range(self.depth):
            x = self.step(x, number)
        return x

    def step(self, x: Any, number: int) -> Any:
        return self.norms[number](self.blocks[number](x))


class Besides(Parts):
    def forward(self, x: Any) -> Any:
        features = [x, x, x]
        for block, norm, feature in zip(self.blocks, self.norms, features[0:], strict=False):
            x = norm(block(x) + feature)
        return self.a(x)


class Counts(Parts):
    def forward(self, x: Any) -> Any:
        start = self.depth - 2
        for block in self.blocks[:start]:
            x = block(x)
        place = 0
        x = self.a(x)
        for block in self.blocks[start:]:
            x = self.norms[place](block(x))
            place += 1  # noqa: SIM113
        return x


class Unsure(Parts):
    """The number depends on the inputs, so nothing is known of the list but that it runs."""

    def forward(self, x: Any) -> Any:
        place = 0
        if x.mean() > 0:
            place = 1
        x = self.blocks[place](x)
        while x.mean() > 0:
            x = self.norms[place](x)
            place += 1
        return self.a(x)


class Branches(Parts):
    def forward(self, x: Any, given: bool = False) -> Any:
        if given:  # noqa: SIM108
            x = self.c(x)
        else:
            x = self.c(self.b(x))
        return self.a(x)


def embed(x: Any, later: nn.Module, first: nn.Module) -> Any:
    return later.inner(first(x))


class ByFunction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.later = nn.ModuleDict({"outer": nn.Linear(2, 2), "inner": nn.Linear(2, 2)})
        self.first = nn.Linear(2, 2)

    def forward(self, x: Any) -> Any:
        return self.later(embed(x, self.later, self.first))


class Inner(Parts):
    def prepare(self, x: Any) -> Any:
        return self.b(x)

    def forward(self, x: Any) -> Any:
        return self.c(x)


class ByMethod(Parts):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()

    def forward(self, x: Any) -> Any:
        return self.inner(self.a(self.inner.prepare(x)))


@pytest.mark.parametrize(
    ("module", "steps"),
    [
        (ByHelper, ["blocks.0", "norms.0", "blocks.1", "norms.1", "blocks.2", "a"]),
        (OnlyByHelper, ["blocks.0", "norms.0", "blocks.1", "norms.1", "blocks.2", "norms.2"]),
        (Besides, ["blocks.0", "norms.0", "blocks.1", "norms.1", "blocks.2", "norms.2", "a"]),
        (Counts, ["blocks.0", "a", "blocks.1", "norms.0", "blocks.2", "norms.1"]),
        (Unsure, ["blocks", "norms", "a"]),
        (Branches, ["b", "c", "a"]),
        (ByFunction, ["first", "later.inner", "later"]),
        (ByMethod, ["inner.b", "a", "inner"]),
    ],
)
def test_arguments_of_calls_are_followed(module: type[nn.Module], steps: list[str]) -> None:
    assert use_order(module()).steps == steps


def test_the_same_step_in_both_branches_is_not_used_twice() -> None:
    assert use_order(Branches()).reused == set()


class Lends(nn.Module):
    """Hands one head for each layer to the decoder, which picks them by number."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = Picking()
        self.heads = nn.ModuleList([nn.Linear(32, 2) for _ in range(3)])

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.decoder(x, heads=self.heads)


class Picking(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([small_block() for _ in range(3)])
        self.norm = nn.LayerNorm(32)

    def forward(self, x: Tensor, heads: Any = None) -> list[Tensor]:
        found = []
        for i, layer in enumerate(self.layers):
            x = self.norm(layer(x))
            if heads is not None:
                found.append(heads[i](x))
        return found


def test_a_list_that_a_child_is_handed_and_picks_from_stands_where_it_is_picked() -> None:
    stack = LayerStack(Lends())
    assert [layer.prefixes for layer in stack.blocks] == [
        ("decoder.layers.0", "decoder.norm", "heads.0"),
        ("decoder.layers.1", "heads.1"),
        ("decoder.layers.2",),
    ]
    assert stack["head"].prefixes[0] == "heads.2"
    inputs = (torch.rand(2, 3, 32),)
    assert partition_errors(stack) == order_errors(stack, inputs) == gradient_errors(stack, inputs) == []


class Behind(nn.Module):
    """Two lists of equal length, one behind the other, or side by side."""

    def __init__(self, side_by_side: bool = False) -> None:
        super().__init__()
        self.side_by_side = side_by_side
        self.wide = nn.ModuleList([nn.Linear(32, 32) for _ in range(3)])
        self.deep = nn.ModuleList([nn.Linear(32, 32) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        if self.side_by_side:
            for wide, deep in zip(self.wide, self.deep, strict=True):
                x = deep(wide(x))
            return x
        for wide in self.wide:
            x = wide(x)
        for deep in self.deep:
            x = deep(x)
        return x


def test_lists_that_run_one_behind_the_other_are_no_columns() -> None:
    assert LayerStack(Behind(side_by_side=True)).blocks[0].prefixes == ("wide.0", "deep.0")
    stack = LayerStack(Behind())
    assert [layer.prefixes for layer in stack.blocks] == [
        *[(f"wide.{i}",) for i in range(3)],
        *[(f"deep.{i}",) for i in range(3)],
    ]
    assert order_errors(stack, (torch.rand(2, 32),)) == []


class Frames(nn.Module):
    """Runs its last blocks for each frame, from the second one on with what they made of the one before."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.updater = nn.Embedding(1, 32), nn.Linear(32, 32)
        self.layers = nn.ModuleList([small_block() for _ in range(4)])
        self.depth, self.last = 4, 2

    def forward(self, x: Tensor) -> Tensor:
        start = self.depth - self.last
        for layer in self.layers[:start]:
            x = layer(x)
        carried = None
        for frame in x.unbind(1):
            if carried is None:
                query = self.query.weight[None].to(frame.device)
            else:
                query = self.updater(carried) + self.query.weight[None].to(frame.device)
            frame = frame + query[0]
            for layer in self.layers[start:]:
                frame = layer(frame)
            carried = frame
        return frame


def test_what_uses_the_previous_iteration_comes_before_the_blocks_with_a_note() -> None:
    stack = LayerStack(Frames())
    assert [layer.prefixes for layer in stack.blocks] == [
        ("layers.0",),
        ("layers.1", "updater", "query"),
        ("layers.2",),
        ("layers.3",),
    ]
    sentence = "updater: from the second turn of a loop on, what runs behind it has run in the turn before"
    assert stack.assumptions == (sentence,)


class Shared(nn.Module):
    """Embeds tokens, and projects features if it is told to."""

    def __init__(self, projects: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 32)
        if projects:
            self.projection = nn.Linear(32, 32)

    def forward(self, ids: Tensor | None = None, features: Tensor | None = None) -> Tensor:
        return self.table(ids) if features is None else self.projection(features)


class Text(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(9, 32)
        self.layers = nn.ModuleList([small_block() for _ in range(2)])

    def forward(self, ids: Tensor, features: Tensor) -> Tensor:
        x = self.embed_tokens(ids) + features
        for layer in self.layers:
            x = layer(x)
        return x


class Tells(nn.Module):
    """Embeds tokens by the module that also projects what a tower found."""

    def __init__(self, projects: bool) -> None:
        super().__init__()
        self.image_tower = nn.Sequential(*(small_block() for _ in range(2)))
        self.text_tower = Text()
        self.shared = Shared(projects)

    def forward(self, ids: Tensor, image: Tensor) -> Tensor:
        tokens = self.shared(ids)
        found = self.shared(features=self.image_tower(image))
        return self.text_tower(ids, found + tokens)


def test_what_embeds_tokens_and_projects_what_a_tower_found_counts_as_head() -> None:
    assert LayerStack(Tells(projects=True))["head"].prefixes == ("shared",)
    assert "shared" in LayerStack(Tells(projects=False))["embeddings"].prefixes
