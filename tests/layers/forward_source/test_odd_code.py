"""Unusual code: reading it never ends the search for layers."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from lightning_freeze import LayerStack
from lightning_freeze.layers.discovery import data_flow
from lightning_freeze.layers.forward_source import reader

HEAD = """
import torch
from torch import nn

class Part(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(2, 2), nn.LayerNorm(2)
    def forward(self, x, *more, **options):
        return self.norm(self.linear(x))

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.blocks = nn.ModuleList([Part() for _ in range({blocks})])
        self.others = nn.ModuleList([Part() for _ in range({others})])
        self.extra = nn.ModuleList()
        self.named = nn.ModuleDict({{"a": Part(), "b": nn.Linear(2, 2)}})
        self.weight = nn.Parameter(torch.ones(2))
        self.depth, self.pairs, self.none = {blocks}, [], None
    def helper(self, x, number=0, *rest, key="a"):
        return self.blocks[number % max(1, len(self.blocks))](x) if len(self.blocks) else self.named[key](x)
    def forward(self, x, *inputs, mask=None, **options):
        y = x
"""

LOOPS = [
    "for a in self.extra:",
    "for a in self.blocks:",
    "for a, b in zip(self.blocks, self.extra):",
    "for a, b in zip(self.blocks, self.others):",
    "for i, a in enumerate(self.blocks[::-1]):",
    "for i in range(self.depth):",
    "for i in range(0):",
    "for a in []:",
    "for (i, (a, b)) in enumerate(zip(self.blocks[1:], self.others[:-1])):",
    "for key, a in self.named.items():",
    "for a in reversed(self.blocks):",
    "for a in [*self.blocks, *self.extra]:",
    "for a in self.blocks[2:1]:",
    "for a, *rest in [(self.first, 1, 2)]:",
    "while y is None:",
    "if mask is not None:",
    "if self.pairs:",
    "with torch.no_grad():",
    "try:",
]
STEPS = [
    "y = self.first(y)",
    "y = a(y) if callable(locals().get('a')) else y",
    "y = a(y)",
    "y = a(y) + self.first(y)",
    "y = self.helper(y, 1)",
    "y = self.helper(y, *inputs, **options)",
    "y = self.blocks[-1](y)",
    "y = self.blocks[i](y)",
    "y = sum(b(y) for b in self.blocks)",
    "y = [b(y) for b in self.extra]",
    "y = {k: v(x) for k, v in self.named.items()}",
    "y, (u, *v) = y, (self.first, self.blocks)",
    "y = (z := self.first)(y)",
    "y = getattr(self, 'fir' + 'st')(y)",
    "y = getattr(self, options.get('name', 'first'))(y)",
    "y = (lambda t: self.named['a'](t))(y)",
    "self.pairs.append(self.blocks)",
    "y = self.pairs[0][0](y) if self.pairs else y",
    "y = y * self.weight",
    "y = nn.functional.linear(y, self.first.weight)",
    "del y; y = x",
    "y = self.none or self.first(x)",
    "y = (self.blocks or self.extra)[0](x)",
    "y = self.blocks[0:0]",
    "y = self.others[len(self.others) // 2 - 1](x)",
    "y = dict(zip('ab', self.blocks))",
    "y = next(iter(self.blocks))(x)",
    "return self.first(y), *inputs",
    "break",
    "continue",
    "assert y is not None",
    "pass",
]


def body(generator: random.Random, depth: int, indent: int, loops: int) -> list[str]:
    lines = []
    for _ in range(generator.randint(1, 4)):
        pad = "    " * indent
        if depth and generator.random() < 0.5:
            opener = generator.choice(LOOPS)
            lines.append(pad + opener)
            lines += body(generator, depth - 1, indent + 1, loops + opener.startswith(("for", "while")))
            if opener == "try:":
                lines.append(f"{pad}finally:")
                lines.append(f"{pad}    y = x")
        else:
            step = generator.choice(STEPS)
            lines.append(pad + ("pass" if step in ("break", "continue") and not loops else step))
    return lines


def load(path: Path, source: str) -> ModuleType:
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check_covers(module: nn.Module) -> LayerStack:
    stack = LayerStack(module)
    owned = [id(p) for layer in stack for p in layer.parameters()]
    assert sorted(owned) == sorted({id(p) for p in module.parameters()})
    return stack


@pytest.mark.slow
def test_random_code_never_ends_the_search(tmp_path: Path) -> None:
    generator = random.Random(7)
    for number in range(150):
        head = HEAD.format(blocks=generator.randint(0, 4), others=generator.randint(0, 3))
        source = "\n".join([head, *body(generator, 3, 2, 0), "        return y", ""])
        module = load(tmp_path / f"odd_{number}.py", source).Model()
        assert "could not" not in check_covers(module).describe(), source


class EmptyLoop(nn.Module):
    """Holds an empty list beside its blocks, and uses something else in the loop over it."""

    def __init__(self) -> None:
        super().__init__()
        self.extra = nn.ModuleList()
        self.first = nn.Linear(2, 2)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)) for _ in range(3)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for a in self.extra:
            x = a(x) + self.first(x)
        for block in self.blocks:
            x = block(x)
        return x


def test_a_loop_over_an_empty_list() -> None:
    assert LayerStack(EmptyLoop()).names == ["embeddings", "0", "1", "2"]


@pytest.mark.parametrize("place", ["reader", "flow"])
def test_a_failure_falls_back_to_structure_and_is_said(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object, **kwargs: object) -> None:
        raise RuntimeError("of no use")

    if place == "reader":
        monkeypatch.setattr(reader._Reader, "visit_For", fails)
    else:
        ordered = data_flow._ordered
        monkeypatch.setattr(data_flow, "_ordered", lambda *args: fails() if args[1] else ordered(*args))
    stack = check_covers(EmptyLoop())
    assert stack.names == ["embeddings", "0", "1", "2"]
    assert any("RuntimeError: of no use" in line for line in stack.assumptions)
    monkeypatch.setenv("LIGHTNING_FREEZE_DEBUG", "1")
    with pytest.raises(RuntimeError, match="of no use"):
        LayerStack(EmptyLoop())
