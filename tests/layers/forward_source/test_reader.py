"""The order of use, read from the code of a module."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lightning_freeze.layers.forward_source.reader import use_order


class Base(nn.Module):
    """Registers ``a`` to ``d``, ``scale`` and the list ``blocks``; subclasses use them."""

    def __init__(self) -> None:
        super().__init__()
        for name in "abcd":
            setattr(self, name, nn.Linear(2, 2))
        self.blocks = nn.ModuleList([nn.Linear(2, 2) for _ in range(3)])
        self.depth, self.early, self.missing = 6, False, None


class NestedCalls(Base):
    def forward(self, x: Any) -> Any:
        return self.a(self.c(self.b(x)))


class Methods(Base):
    def forward(self, x: Any) -> Any:
        return self.a(self.embed(x))

    def embed(self, x: Any) -> Any:
        return self.d(x)


class Settings(Base):
    def forward(self, x: Any) -> Any:
        if self.early:
            x = self.a(x)
        if self.missing is not None:
            x = self.b(x)
        x = self.c(x) if not self.early else self.d(x)
        return self.a(x)


class Questions(Base):
    def forward(self, x: Any) -> Any:
        x = x.to(self.d.weight.dtype)
        if len(self.c.weight) > 2 and isinstance(self.b, nn.Linear):
            x = x + 1
        return self.a(x)


class LoopUsesMore(Base):
    def forward(self, x: Any) -> Any:
        for block in self.blocks:
            x = block(x) + self.c(x)
        return self.a(x)


class Inherited(Methods):
    def forward(self, x: Any) -> Any:
        return self.b(super().forward(x))


class Steps(Base):
    def training_step(self, batch: Any, index: int) -> Any:
        return self.d(self(batch))

    def forward(self, x: Any) -> Any:
        return self.c(x)


class Recursive(Base):
    def forward(self, x: Any) -> Any:
        return self.a(x) if x is None else self.forward(self.b(x))


class Comprehension(Base):
    def forward(self, x: Any) -> Any:
        return sum([self.a(block(x)) for block in self.blocks])


@pytest.mark.parametrize(
    ("module", "order"),
    [
        (NestedCalls, ["b", "c", "a"]),
        (Methods, ["d", "a"]),
        (Settings, ["c", "a"]),
        (Questions, ["a"]),
        (LoopUsesMore, ["blocks", "c", "a"]),
        (Inherited, ["d", "a", "b"]),
        (Steps, ["c", "d"]),
        (Recursive, ["a", "b"]),
        (Comprehension, ["blocks", "a"]),
        (Base, []),
    ],
)
def test_order_of_first_use(module: type[nn.Module], order: list[str]) -> None:
    assert use_order(module()).order == order


def test_counted_loops() -> None:
    class Shared(Base):
        def forward(self, x: Any) -> Any:
            for i in range(self.depth):
                x = self.d(self.blocks[i % 3](x))
            return x

    found = use_order(Shared())
    assert found.passes == {"blocks": 6}
    assert found.repeated == {"d": 6}


def test_what_is_used_again() -> None:
    class Twice(Base):
        def forward(self, x: Any, y: Any) -> Any:
            return self.c(self.a(x)) + self.c(self.b(y))

    assert use_order(Twice()).reused == {"c"}


def test_code_that_cannot_be_read() -> None:
    scope: dict[str, Any] = {"Base": Base}
    exec("class Hidden(Base):\n    def forward(self, x):\n        return self.b(self.a(x))", scope)
    assert use_order(scope["Hidden"]()).order == []


class Turns(Base):
    """Registers ``norms`` beside the blocks; subclasses loop over both."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(2) for _ in range(3)])
        self.layer1, self.layer2 = nn.Linear(2, 2), nn.Linear(2, 2)
        self.late, self.picked = 2, [2, 0]


class Zipped(Turns):
    def forward(self, x: Any) -> Any:
        for i, (norm, block) in enumerate(zip(self.norms, self.blocks, strict=True)):
            if i == self.late:
                x = x + self.a(x)
            x = block(norm(x))
        return x


class Indexed(Turns):
    def forward(self, x: Any) -> Any:
        for i in range(len(self.blocks)):
            x = self.blocks[i](x)
            if i in self.picked:
                x = x + self.norms[self.picked.index(i)](x)
        return x


class Reversed(Turns):
    def forward(self, x: Any) -> Any:
        for block in reversed(self.blocks):
            x = block(x)
        return x


class ByName(Turns):
    def forward(self, x: Any) -> Any:
        for i in range(2):
            x = getattr(self, f"layer{2 - i}")(x)
        return x


class Rescales(Turns):
    def forward(self, x: Any) -> Any:
        for block in self.blocks:
            block.weight.mul_(2)
        x = self.a(x)
        for block in self.blocks:
            x = block(x)
        return x


class Late(Turns):
    def forward(self, x: Any) -> Any:
        query = self.a.weight
        return self.b(x) @ query


class Alias(Turns):
    def forward(self, x: Any) -> Any:
        some = list(reversed(self.blocks))[:2]
        for block in some + list(self.blocks)[:1]:
            x = self.c(block(x))
        return x


@pytest.mark.parametrize(
    ("module", "steps"),
    [
        (Zipped, ["norms.0", "blocks.0", "norms.1", "blocks.1", "a", "norms.2", "blocks.2"]),
        (Indexed, ["blocks.0", "norms.1", "blocks.1", "blocks.2", "norms.0"]),
        (Reversed, ["blocks.2", "blocks.1", "blocks.0"]),
        (ByName, ["layer2", "layer1"]),
        (Rescales, ["a", "blocks"]),
        (Late, ["b", "a"]),
        (Alias, ["blocks.2", "c", "blocks.1", "blocks.0"]),
    ],
)
def test_loops_are_followed_turn_by_turn(module: type[nn.Module], steps: list[str]) -> None:
    assert use_order(module()).steps == steps


def test_a_list_that_runs_in_both_directions() -> None:
    class Flow(Turns):
        def forward(self, x: Any, reverse: bool = False) -> Any:
            if not reverse:
                for block in self.blocks:
                    x = block(x)
            else:
                for block in reversed(self.blocks):
                    x = block(x)
            return x

    assert use_order(Flow()).bidirectional == {"blocks"}
    assert use_order(Reversed()).bidirectional == set()


class Looks(nn.Module):
    """Looks at its blocks before it runs anything, as users' training steps do."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
        self.embed = nn.Linear(2, 2)

    def forward(self, x):
        self.modes = [block.training for block in self.blocks]
        for number, block in enumerate(self.blocks):
            block.rate = number / 3
            self.log(f"rate {number}", block.rate)
        frozen = sum(not block.weight.requires_grad for block in self.blocks)
        x = self.embed(x) + frozen
        for block in self.blocks:
            x = block(x)
        return x


class Runs(Looks):
    """The same loops, but they do run the blocks."""

    def forward(self, x):
        outputs = [block.forward(x) for block in self.blocks]
        return self.embed(sum(outputs))


class PassesOn(Looks):
    def forward(self, x):
        for block in self.blocks:
            x = torch.nn.functional.linear(x, block.weight)
        return self.embed(x)


@pytest.mark.parametrize(
    ("module", "order"),
    [(Looks, ["embed", "blocks"]), (Runs, ["blocks", "embed"]), (PassesOn, ["blocks", "embed"])],
)
def test_a_loop_that_only_looks_at_modules_runs_none(module: type[nn.Module], order: list[str]) -> None:
    assert use_order(module()).order == order
