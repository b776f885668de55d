"""Weights are equal, bit for bit, to those of an optimizer whose groups have been made by hand."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from rate_toys import FACTORS, attached, groups_by_hand, make_parameters, set_gradients, weights
from torch.nn import Parameter
from torch.optim import Optimizer

Make = Callable[[Any, float], Optimizer]


def imported(module: str, name: str, **options: Any) -> Make:
    return lambda groups, lr: getattr(pytest.importorskip(module), name)(groups, lr=lr, **options)


class StepInGroup(Optimizer):
    """Adam that counts its steps in the group, as apex's FusedAdam does."""

    def __init__(self, params: Any, lr: float, **defaults: Any) -> None:
        super().__init__(params, {"lr": lr, **defaults})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        if closure is not None:
            closure()
        for group in self.param_groups:
            # Groups with larger rates count faster, so that one count cannot stand for all.
            group["step"] = group.get("step", 0) + (2 if group["lr"] > 0.02 else 1)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = self.state[parameter]
                    state["v"] = state.get("v", 0) + parameter.grad.square()
                    parameter.sub_(parameter.grad / (state["v"].sqrt() + 1e-8), alpha=group["lr"] / group["step"])


OPTIMIZERS: dict[str, tuple[Make, float, tuple[float, ...]]] = {
    "AdamW foreach": (imported("torch.optim", "AdamW", foreach=True), 1e-2, FACTORS),
    "AdamW fused": (imported("torch.optim", "AdamW", fused=True), 1e-2, FACTORS),
    "AdamW": (imported("torch.optim", "AdamW", foreach=False), 1e-2, FACTORS),
    "Muon": (imported("torch.optim", "Muon"), 1e-2, FACTORS),
    "NAdam": (imported("torch.optim", "NAdam"), 1e-2, FACTORS),
    "Lion": (imported("pytorch_optimizer", "Lion"), 1e-3, FACTORS),
    "SOAP": (imported("pytorch_optimizer", "SOAP"), 1e-2, FACTORS),
    "Prodigy of pytorch_optimizer": (imported("pytorch_optimizer", "Prodigy"), 1.0, FACTORS),
    "Prodigy": (imported("prodigyopt", "Prodigy"), 1.0, (0.0, 0.0, 1.0, 1.0, 1.0, 1.0)),
    # Keeps a norm in its first group only.
    "DAdaptSGD": (imported("pytorch_optimizer", "DAdaptSGD"), 1.0, FACTORS),
    "AdamWScheduleFree": (imported("schedulefree", "AdamWScheduleFree", warmup_steps=4), 1e-2, FACTORS),
    "SGDScheduleFree": (imported("schedulefree", "SGDScheduleFree", warmup_steps=4), 1e-2, FACTORS),
    "step added to the group": (StepInGroup, 5e-2, FACTORS),
    "step among the defaults": (lambda groups, lr: StepInGroup(groups, lr, step=0), 5e-2, FACTORS),
}


def train(optimizer: Optimizer, parameters: list[Any], steps: range, closure: bool) -> None:
    if hasattr(optimizer, "train"):
        optimizer.train()  # schedule-free
    for step in steps:
        if closure:
            optimizer.step(lambda step=step: set_gradients(parameters, step))
        else:
            set_gradients(parameters, step)
            optimizer.step()


@pytest.mark.parametrize("closure", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weights_equal(name: str, closure: bool) -> None:
    make, lr, factors = OPTIMIZERS[name]
    expected, parameters = make_parameters(), make_parameters()
    torch.manual_seed(0)
    train(make(groups_by_hand(expected, factors, lr), lr), expected, range(12), closure)
    torch.manual_seed(0)
    optimizer = make(parameters, lr)
    users = optimizer.param_groups[0]
    attached(parameters, optimizer, factors)
    train(optimizer, parameters, range(12), closure)
    assert all(map(torch.equal, weights(parameters), weights(expected)))
    assert optimizer.param_groups == [users]
    assert users["params"] == parameters
    assert users["lr"] == lr


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weights_equal_after_resuming(name: str) -> None:
    make, lr, factors = OPTIMIZERS[name]
    torch.manual_seed(0)
    by_hand = make_parameters()
    optimizer = make(groups_by_hand(by_hand, factors, lr), lr)
    train(optimizer, by_hand, range(7), closure=False)
    state = saved_and_loaded(optimizer.state_dict())
    torch.manual_seed(0)
    parameters = make_parameters()
    optimizer = make(parameters, lr)
    rates = attached(parameters, optimizer, factors)
    train(optimizer, parameters, range(7), closure=False)
    saved = saved_and_loaded({"optimizer": optimizer.state_dict(), "rates": rates.state_dict()})
    assert len(saved["optimizer"]["param_groups"]) == 1

    torch.manual_seed(0)
    expected = copies(by_hand)
    optimizer = make(groups_by_hand(expected, factors, lr), lr)
    optimizer.load_state_dict(state)
    train(optimizer, expected, range(7, 12), closure=False)
    torch.manual_seed(0)
    resumed = copies(parameters)
    optimizer = make(resumed, lr)
    attached(resumed, optimizer, factors, state=saved["rates"])
    optimizer.load_state_dict(saved["optimizer"])
    train(optimizer, resumed, range(7, 12), closure=False)
    assert all(map(torch.equal, weights(resumed), weights(expected)))


def saved_and_loaded(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def copies(parameters: list[Parameter]) -> list[Parameter]:
    return [Parameter(parameter.detach().clone()) for parameter in parameters]


def test_values_stay_with_their_parameters_when_the_user_reorders_or_rebuilds_the_groups() -> None:
    expected, parameters = make_parameters(), make_parameters()
    factors = (0.25, 0.5, 1.0) * 2
    by_hand = [{"params": [p], "lr": 5e-2 * f} for p, f in zip(expected, factors, strict=True)]
    train(StepInGroup(by_hand, lr=5e-2), expected, range(9), closure=False)
    optimizer = StepInGroup([{"params": parameters[:2]}, {"params": parameters[2:]}], lr=5e-2)
    attached(parameters, optimizer, factors)
    train(optimizer, parameters, range(3), closure=False)
    optimizer.param_groups.reverse()
    train(optimizer, parameters, range(3, 6), closure=False)
    optimizer.param_groups = [dict(group) for group in reversed(optimizer.param_groups)]
    train(optimizer, parameters, range(6, 9), closure=False)
    assert all(map(torch.equal, weights(parameters), weights(expected)))


def test_an_optimizer_that_keeps_nothing_in_its_groups_adds_nothing_to_a_checkpoint() -> None:
    parameters = make_parameters()
    optimizer = torch.optim.AdamW(parameters)
    rates = attached(parameters, optimizer)
    train(optimizer, parameters, range(3), closure=False)
    assert rates.state_dict() is None


def test_the_users_group_shows_the_values_of_the_part_at_the_users_rate() -> None:
    parameters = make_parameters()
    optimizer = StepInGroup(parameters, lr=5e-2)
    attached(parameters, optimizer)
    train(optimizer, parameters, range(3), closure=False)
    assert optimizer.param_groups[0]["step"] == 6  # 3 in the parts at a smaller rate


def test_a_value_that_the_user_writes_holds_for_all_parts() -> None:
    expected, parameters = make_parameters(), make_parameters()
    by_hand = StepInGroup(groups_by_hand(expected, FACTORS, 5e-2), lr=5e-2)
    optimizer = StepInGroup(parameters, lr=5e-2)
    attached(parameters, optimizer)
    for each, trained in ((by_hand, expected), (optimizer, parameters)):
        train(each, trained, range(3), closure=False)
        for group in each.param_groups:
            group["step"] = 100
        train(each, trained, range(3, 6), closure=False)
    assert all(map(torch.equal, weights(parameters), weights(expected)))


class HalvesItsRate(Optimizer):
    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.sub_(parameter.grad, alpha=group["lr"])
            group["lr"] = group["lr"] / 2


@pytest.mark.parametrize("factors", [FACTORS, (0.25, 0.25, 0.25, 0.5, 0.5, 0.5)])
def test_an_optimizer_that_changes_its_own_rate_goes_on_from_it(factors: tuple[float, ...]) -> None:
    expected, parameters = make_parameters(), make_parameters()
    train(HalvesItsRate(groups_by_hand(expected, factors, 0.1), 0.1), expected, range(5), closure=False)
    optimizer = HalvesItsRate(parameters, 0.1)
    rates = attached(parameters, optimizer, factors)
    train(optimizer, parameters, range(5), closure=False)
    assert all(map(torch.equal, weights(parameters), weights(expected)))
    assert optimizer.param_groups[0]["lr"] == 0.1 / 32
    assert list(rates.rates_of(optimizer).values()) == [0.1 / 32 * factor for factor in factors]


class HalvesLargeRates(HalvesItsRate):
    """Comes to a rate of its own in each group, as SWATS does."""

    def step(self, closure: Any = None) -> None:
        before = [group["lr"] for group in self.param_groups]
        super().step()
        for group, lr in zip(self.param_groups, before, strict=True):
            group["lr"] = lr / 2 if lr > 0.03 else lr


def test_rates_that_an_optimizer_sets_in_each_group_are_the_ones_reported_and_resumed() -> None:
    by_hand, parameters = make_parameters(), make_parameters()
    expected = HalvesLargeRates(groups_by_hand(by_hand, FACTORS, 0.1), 0.1)
    train(expected, by_hand, range(5), closure=False)
    optimizer = HalvesLargeRates(parameters, 0.1)
    rates = attached(parameters, optimizer)
    train(optimizer, parameters, range(3), closure=False)
    saved = saved_and_loaded({"optimizer": optimizer.state_dict(), "rates": rates.state_dict()})
    optimizer = HalvesLargeRates(parameters, 0.1)
    rates = attached(parameters, optimizer, state=saved["rates"])
    optimizer.load_state_dict(saved["optimizer"])
    train(optimizer, parameters, range(3, 5), closure=False)
    assert all(map(torch.equal, weights(parameters), weights(by_hand)))
    assert list(rates.rates_of(optimizer).values()) == [g["lr"] for g in expected.param_groups for _ in g["params"]]


def test_a_state_from_before_the_first_step_may_be_loaded_in_mid_run() -> None:
    expected, parameters = make_parameters(), make_parameters()
    train(StepInGroup(groups_by_hand(expected, FACTORS, 5e-2), 5e-2), expected, range(3), closure=False)
    optimizer = StepInGroup(parameters, 5e-2)
    attached(parameters, optimizer)
    begun, state = weights(parameters), copy.deepcopy(optimizer.state_dict())
    for _ in range(2):
        with torch.no_grad():
            for parameter, value in zip(parameters, begun, strict=True):
                parameter.copy_(value)
        optimizer.load_state_dict(state)
        train(optimizer, parameters, range(3), closure=False)
    assert all(map(torch.equal, weights(parameters), weights(expected)))
