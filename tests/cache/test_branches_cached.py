"""Networks with parts that run side by side: cached as far as they are a chain, refused in one line otherwise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cached_fits import assert_same
from test_any_model import fit
from torch import Tensor, nn


def step() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 8))


class DeepAR(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList([nn.Embedding(5, 4) for _ in range(2)])
        self.rnn = nn.LSTM(8, 8, 2, batch_first=True)
        self.projections = nn.ModuleList([nn.Linear(8, 1) for _ in range(3)])

    def forward(self, x: Tensor) -> Any:
        h, _ = self.rnn(torch.cat([table(x[..., i]) for i, table in enumerate(self.tables)], -1))
        return tuple(part(h) for part in self.projections)


class TemporalFusion(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.variables = nn.ModuleDict({key: nn.Sequential(nn.Linear(1, 8), nn.LayerNorm(8)) for key in "abc"})
        self.lstm = nn.LSTM(8, 8, batch_first=True)
        self.out = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Any:
        h = torch.stack([self.variables[key](x[..., i : i + 1]) for i, key in enumerate(self.variables)]).sum(0)
        h, _ = self.lstm(h)
        return self.out(h)


class Decoders(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleList([step() for _ in range(3)])
        self.mean_decoder = nn.ModuleList([step() for _ in range(2)])
        self.var_decoder = nn.ModuleList([step() for _ in range(2)])

    def forward(self, x: Tensor) -> Any:
        for block in self.encoder:
            x = block(x)
        mean = variance = x
        for block in self.mean_decoder:
            mean = block(mean)
        for block in self.var_decoder:
            variance = block(variance)
        return mean, variance


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleList([step() for _ in range(2)])
        self.branches = nn.ModuleList([nn.Sequential(step(), step()) for _ in range(3)])

    def forward(self, x: Tensor) -> Any:
        for block in self.encoder:
            x = block(x)
        return [branch(x) for branch in self.branches]


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize(
    ("build", "shape", "frozen", "reason"),
    [
        (DeepAR, (4, 6, 2), "embeddings", ""),
        (DeepAR, (4, 6, 2), "embeddings,0", ""),
        (TemporalFusion, (4, 6, 3), ":1", "no single module that takes and returns hidden states"),
        (TemporalFusion, (4, 6, 3), ":2", "no single module that takes and returns hidden states"),
        (Decoders, (4, 8), "encoder.:2", ""),
        (Decoders, (4, 8), "encoder,mean_decoder", ""),
        (Branches, (4, 8), "50%", ""),
        (Branches, (4, 8), "encoder", ""),
    ],
)
def test_equals_uncached(build: Any, shape: tuple[int, ...], frozen: str, reason: str) -> None:
    torch.manual_seed(0)
    module = build()
    batches = [(torch.randint(5, shape) if build is DeepAR else torch.rand(shape),) for _ in range(3)]
    plain, _, _ = fit(module, frozen, batches, False)
    cached, cache, said = fit(module, frozen, batches, True)
    assert_same(plain, cached)
    assert len(said) == bool(reason) and all(reason in line for line in said)
    assert (cache.hit_rate > 0) == (not reason and frozen != "embeddings")
