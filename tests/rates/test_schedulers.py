"""Each parameter's rate is the user's rate times its factor under every scheduler, measured from displacements."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from rate_toys import FACTORS, attached, effective_rates, make_parameters
from torch.optim import SGD, Optimizer
from torch.optim import lr_scheduler as torchs

SCHEDULERS: dict[str, Callable[[Optimizer], Any]] = {
    "LambdaLR list": lambda o: torchs.LambdaLR(o, [lambda s: 0.9**s, lambda s: 1 / (s + 1)]),
    "CosineAnnealingLR": lambda o: torchs.CosineAnnealingLR(o, T_max=7, eta_min=0.01),
    "CosineAnnealingWarmRestarts": lambda o: torchs.CosineAnnealingWarmRestarts(o, T_0=4, eta_min=0.003),
    "SequentialLR": lambda o: torchs.SequentialLR(
        o, [torchs.LinearLR(o, 0.1, total_iters=4), torchs.CosineAnnealingLR(o, 8, eta_min=0.002)], [4]
    ),
    "CyclicLR": lambda o: torchs.CyclicLR(
        o, base_lr=[0.01, 0.002], max_lr=[0.1, 0.05], step_size_up=3, cycle_momentum=False
    ),
    "ChainedScheduler": lambda o: torchs.ChainedScheduler(
        [torchs.ConstantLR(o, 0.1, total_iters=3), torchs.ExponentialLR(o, 0.9)]
    ),
    "OneCycleLR": lambda o: torchs.OneCycleLR(o, max_lr=[0.1, 0.3], total_steps=14, cycle_momentum=False),
    "ReduceLROnPlateau": lambda o: torchs.ReduceLROnPlateau(o, factor=0.3, patience=1, min_lr=[0.001, 0.004]),
}


def make_optimizer(parameters: list[Any]) -> SGD:
    return SGD([{"params": parameters[:3]}, {"params": parameters[3:], "lr": 0.02}], lr=0.1, momentum=0.0)


def step_scheduler(scheduler: Any) -> None:
    args = (1.0,) if isinstance(scheduler, torchs.ReduceLROnPlateau) else ()
    scheduler.step(*args)


def users_rates(optimizer: Optimizer) -> list[float]:
    return [group["lr"] for group in optimizer.param_groups for _ in group["params"]]


@pytest.mark.parametrize("name", SCHEDULERS)
def test_rates_are_the_users_times_the_factors(name: str) -> None:
    alone, ours = make_parameters(), make_parameters()
    reference, optimizer = make_optimizer(alone), make_optimizer(ours)
    reference_scheduler, scheduler = SCHEDULERS[name](reference), SCHEDULERS[name](optimizer)
    rates = attached(ours, optimizer)
    for _ in range(12):
        rates.attach([optimizer])
        expected = [rate * factor for rate, factor in zip(users_rates(reference), FACTORS, strict=True)]
        assert list(rates.rates_of(optimizer).values()) == pytest.approx(expected, rel=1e-11)
        assert effective_rates(ours, optimizer.step) == pytest.approx(expected, rel=1e-11)
        assert users_rates(optimizer) == users_rates(reference)
        reference.step()
        step_scheduler(reference_scheduler)
        step_scheduler(scheduler)


def test_pytorch_warmup_dampens_the_users_rates() -> None:
    pytorch_warmup = pytest.importorskip("pytorch_warmup")
    seen = []
    for factors in ((1.0,) * 6, FACTORS):
        parameters = make_parameters()
        optimizer = make_optimizer(parameters)
        scheduler = torchs.CosineAnnealingLR(optimizer, T_max=12)
        warmup = pytorch_warmup.LinearWarmup(optimizer, warmup_period=6)
        attached(parameters, optimizer, factors)
        moved = []
        for _ in range(12):
            moved.append(effective_rates(parameters, optimizer.step))
            with warmup.dampening():
                scheduler.step()
        seen.append(moved)
    alone, ours = seen
    for before, after in zip(alone, ours, strict=True):
        assert after == pytest.approx([r * f for r, f in zip(before, FACTORS, strict=True)], rel=1e-11)


@pytest.mark.parametrize("name", ["CosineLRScheduler", "StepLRScheduler"])
def test_timm_schedulers_drive_the_users_groups(name: str) -> None:
    scheduler_module = pytest.importorskip("timm.scheduler")
    parameters = make_parameters()
    optimizer = make_optimizer(parameters)
    own = {"CosineLRScheduler": {"t_initial": 8}, "StepLRScheduler": {"decay_t": 3}}[name]
    scheduler = getattr(scheduler_module, name)(optimizer, **own, warmup_t=3, warmup_lr_init=1e-4)
    attached(parameters, optimizer)
    for epoch in range(8):
        expected = [rate * factor for rate, factor in zip(users_rates(optimizer), FACTORS, strict=True)]
        assert effective_rates(parameters, optimizer.step) == pytest.approx(expected, rel=1e-11)
        scheduler.step(epoch + 1)


def test_rates_set_by_group_index_from_values_that_groups_carry() -> None:
    parameters = make_parameters()
    optimizer = SGD(
        [{"params": parameters[:3], "scale": 0.5, "name": "body"}, {"params": parameters[3:], "scale": 1.0}], lr=0.1
    )
    attached(parameters, optimizer)
    for step in range(5):
        optimizer.param_groups[0]["lr"] = 0.3 * optimizer.param_groups[0]["scale"] / (step + 1)
        optimizer.param_groups[1]["lr"] = 0.2 * optimizer.param_groups[1]["scale"]
        users = [0.15 / (step + 1)] * 3 + [0.2] * 3
        expected = [rate * factor for rate, factor in zip(users, FACTORS, strict=True)]
        assert effective_rates(parameters, optimizer.step) == pytest.approx(expected, rel=1e-11)


def test_a_rate_written_within_the_closure_counts_in_the_same_step() -> None:
    parameters = make_parameters()
    optimizer = SGD(parameters, lr=0.1)
    attached(parameters, optimizer)

    def closure() -> float:
        assert len(optimizer.param_groups) == 1
        optimizer.param_groups[0]["lr"] = 0.7
        return 0.0

    for arguments in (lambda: optimizer.step(closure), lambda: optimizer.step(closure=closure)):
        optimizer.param_groups[0]["lr"] = 0.1
        assert effective_rates(parameters, arguments) == pytest.approx([0.7 * f for f in FACTORS], rel=1e-11)


def test_factors_may_change_from_step_to_step() -> None:
    parameters = make_parameters()
    optimizer = SGD(parameters, lr=0.1)
    now = 0.0
    attached(parameters, optimizer, [*[lambda: now] * 3, 1.0, 1.0, 1.0])
    for step in range(4):
        now = step / 4
        assert effective_rates(parameters, optimizer.step) == pytest.approx([0.1 * now] * 3 + [0.1] * 3, rel=1e-11)


def test_a_tensor_rate_is_scaled_and_never_shared() -> None:
    parameters = make_parameters()
    optimizer = torch.optim.Adam(parameters, lr=torch.tensor(0.1, dtype=torch.float64), foreach=False)
    users = optimizer.param_groups[0]["lr"]
    seen: list[Any] = []
    step = optimizer._init_group

    def init_group(group: dict[str, Any], *args: Any) -> Any:
        seen.append((group["lr"], float(group["lr"])))
        return step(group, *args)

    optimizer._init_group = init_group
    attached(parameters, optimizer)
    effective_rates(parameters, optimizer.step)
    users.fill_(0.2)
    effective_rates(parameters, optimizer.step)
    assert [rate for _, rate in seen] == pytest.approx([0.025, 0.05, 0.1, 0.05, 0.1, 0.2])
    assert len({id(tensor) for tensor, _ in seen[:3]} | {id(users)}) == 4
    assert [id(tensor) for tensor, _ in seen[:3]] == [id(tensor) for tensor, _ in seen[3:]]
    assert optimizer.param_groups[0]["lr"] is users
    assert float(users) == 0.2
