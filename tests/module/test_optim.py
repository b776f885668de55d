"""Weight decay spares norms and biases; the default schedule rises and falls linearly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn

from lightning_freeze.module.optim import build_optimizer, linear_warmup_decay, split_decay


class ScaleNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2, 2))


def network() -> nn.Module:
    first = nn.Linear(4, 4)
    tied = nn.Linear(4, 4)
    tied.weight = first.weight
    return nn.Sequential(nn.Embedding(5, 4), first, nn.LayerNorm((2, 2)), ScaleNorm(), tied)


def test_norms_and_biases_do_not_decay() -> None:
    module = network()
    groups = split_decay(module)
    assert [group["name"] for group in groups] == ["decay", "no_decay"]
    assert {id(p) for p in groups[0]["params"]} == {id(module[0].weight), id(module[1].weight)}
    assert groups[1]["weight_decay"] == 0.0


def test_frozen_and_shared_parameters_stand_in_one_group() -> None:
    module = network().requires_grad_(False)
    parameters = [parameter for group in split_decay(module) for parameter in group["params"]]
    assert sorted(map(id, parameters)) == sorted(map(id, module.parameters()))


@pytest.mark.parametrize(
    ("factory", "names"),
    [
        (lambda params: torch.optim.AdamW(params, weight_decay=0.3), ["decay", "no_decay"]),
        (lambda params: torch.optim.SGD(params, lr=0.1), ["decay", "no_decay"]),
        (lambda params: torch.optim.LBFGS(params), [None]),
    ],
)
def test_optimizers_with_and_without_weight_decay(factory: Callable[[Any], Any], names: list[str]) -> None:
    optimizer = build_optimizer(factory, network())
    assert [group.get("name") for group in optimizer.param_groups] == names


def test_the_users_decay_holds_where_it_should() -> None:
    optimizer = build_optimizer(lambda params: torch.optim.AdamW(params, weight_decay=0.3), network())
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]


def test_a_wrong_setting_keeps_its_own_message() -> None:
    with pytest.raises(ValueError, match="Invalid learning rate"):
        build_optimizer(lambda params: torch.optim.AdamW(params, lr=-1.0), network())


def rates(total: int, warmup: float) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = linear_warmup_decay(optimizer, total, warmup)
    values = []
    for _ in range(total + 1):
        values.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return values


def test_linear_warmup_and_decay() -> None:
    assert rates(10, 0.2) == pytest.approx([0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0.0])
    assert rates(4, 0.0) == pytest.approx([1.0, 0.75, 0.5, 0.25, 0.0])
    assert rates(1, 0.1) == pytest.approx([1.0, 0.0])


def test_a_run_without_an_end() -> None:
    with pytest.raises(MisconfigurationException, match=r"no known end: expected trainer\.max_epochs"):
        linear_warmup_decay(torch.optim.SGD([nn.Parameter(torch.zeros(1))]), float("inf"), 0.1)
