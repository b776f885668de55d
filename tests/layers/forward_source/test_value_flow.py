"""Which children of a module feed which, according to its code."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_freeze.layers.forward_source.value_flow.interpreter import value_flow


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))
        self.steps = nn.ModuleList([nn.Linear(4, 4) for _ in range(2)])
        self.drop = nn.Dropout()


class Plain(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.drop(self.b(torch.relu(self.a(x)))))


class Residual(Base):
    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        h = h + self.b(h)
        return self.c(h)


class Forked(Base):
    def forward(self, x: Tensor) -> Any:
        h = self.a(x)
        return {"b": self.b(h), "c": self.c(h)}


class Methods(Base):
    def first(self, x: Tensor, *, scale: float = 1.0) -> Tensor:
        return self.a(x) * scale

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x, scale=2.0)
        self.kept = self.b(h)
        return self.second()

    def second(self) -> Tensor:
        return self.c(self.kept)


class InPlace(Base):
    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        out = torch.zeros_like(x)
        out[:, 0] = self.b(h)[:, 0]
        out.add_(h)
        return self.c(out)


class Optional(Base):
    def forward(self, x: Tensor, h: Tensor | None = None) -> Tensor:
        if h is None:
            h = self.a(x)
        y = self.b(h) if x.sum() > 0 else h
        return self.c(y)


@pytest.mark.parametrize("kind", [Plain, Residual, Methods, InPlace, Optional])
def test_a_chain(kind: type[nn.Module]) -> None:
    flow = value_flow(kind())
    assert flow.feeds("a", "b") and flow.feeds("b", "c") and flow.feeds("a", "c")
    assert not (flow.feeds("c", "a") or flow.feeds("b", "a") or flow.feeds("c", "b"))


def test_a_fork() -> None:
    flow = value_flow(Forked())
    assert flow.feeds("a", "b") and flow.feeds("a", "c")
    assert not flow.feeds("b", "c") and not flow.feeds("c", "b")


def test_directly_means_with_no_other_child_in_between() -> None:
    plain, residual = value_flow(Plain()), value_flow(Residual())
    assert plain.feeds_directly("b", "c"), "a dropout is no step"
    assert not plain.feeds_directly("a", "c")
    assert residual.feeds_directly("a", "c")


class Loop(Base):
    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x)
        return x


class Beside(Base):
    def forward(self, x: Tensor) -> Any:
        return [step(x) for step in self.steps]


def test_a_loop_feeds_itself_if_it_is_a_chain() -> None:
    loop, beside = value_flow(Loop()), value_flow(Beside())
    assert loop.feeds("steps.0", "steps.1")
    assert not beside.feeds("steps.0", "steps.1")


class Silent(Base):
    pass


def test_no_code_gives_no_answer() -> None:
    assert not value_flow(Silent()).calls
