"""The order of use, read from the code of a module."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from lightning_freeze.layers.source import use_order


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
        (LoopUsesMore, ["c", "blocks", "a"]),
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

    assert use_order(Twice()).again == {"c"}


def test_code_that_cannot_be_read() -> None:
    scope: dict[str, Any] = {"Base": Base}
    exec("class Hidden(Base):\n    def forward(self, x):\n        return self.b(self.a(x))", scope)
    assert use_order(scope["Hidden"]()).order == []
