"""Outside of a step the groups are the user's own, whatever happens within it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from rate_toys import FACTORS, Factors, attached, effective_rates, hooks_of, make_parameters, set_gradients
from torch.optim import LBFGS, SGD, AdamW, Optimizer

from lightning_freeze.errors import ConfigurationError
from lightning_freeze.rates.optimizer_rates import OptimizerRates
from lightning_freeze.report.rate_log import layer_rates
from lightning_freeze.session.optimizer_steps import OptimizerSteps


def times(lr: float, factors: Any = FACTORS) -> Any:
    return pytest.approx([lr * factor for factor in factors], rel=1e-11)


def test_factors_of_1_touch_nothing() -> None:
    parameters = make_parameters()
    optimizer = AdamW(parameters)
    before, attributes = hooks_of(optimizer), set(vars(optimizer))
    rates = attached(parameters, optimizer, [1.0] * 6, freezes=True)
    assert hooks_of(optimizer) == before == 0
    assert set(vars(optimizer)) == attributes
    assert rates.state_dict() is None


def test_an_optimizer_without_scaled_parameters_is_not_touched() -> None:
    parameters = make_parameters()
    scaled, other = SGD(parameters[:4], lr=0.1), SGD(parameters[4:], lr=0.1)
    attached(parameters, [scaled, other])
    assert (hooks_of(scaled), hooks_of(other)) == (2, 0)


def test_the_users_list_and_groups_stay_the_same_objects() -> None:
    parameters = make_parameters()
    optimizer = SGD([{"params": parameters[:3]}, {"params": parameters[3:], "lr": 0.2}], lr=0.1)
    groups, each = optimizer.param_groups, list(optimizer.param_groups)
    rates = attached(parameters, optimizer)
    effective_rates(parameters, optimizer.step)
    assert optimizer.param_groups is groups
    assert all(left is right for left, right in zip(groups, each, strict=True))
    rates.detach()
    assert hooks_of(optimizer) == 0
    assert effective_rates(parameters, optimizer.step) == pytest.approx([0.1] * 3 + [0.2] * 3)


def test_a_group_added_in_mid_run_is_scaled() -> None:
    parameters = make_parameters()
    optimizer = SGD(parameters[:3], lr=0.1)
    rates = attached(parameters, optimizer)
    effective_rates(parameters[:3], optimizer.step)
    optimizer.add_param_group({"params": parameters[3:], "lr": 0.2})
    assert effective_rates(parameters, optimizer.step) == pytest.approx([0.025, 0.025, 0.05, 0.1, 0.2, 0.2])
    assert list(rates.rates_of(optimizer).values()) == pytest.approx([0.025, 0.025, 0.05, 0.1, 0.2, 0.2])


def test_the_first_scaled_parameters_may_be_added_in_mid_run() -> None:
    parameters = make_parameters()
    optimizer = SGD(parameters[4:], lr=0.1)
    rates = attached(parameters, optimizer)
    assert hooks_of(optimizer) == 0
    optimizer.add_param_group({"params": parameters[:4]})
    rates.attach([optimizer])
    assert effective_rates(parameters, optimizer.step) == times(0.1)


def test_optimizers_may_be_rebuilt_in_mid_run() -> None:
    parameters = make_parameters()
    old, new = SGD(parameters, lr=0.1), SGD(parameters, lr=0.3)
    rates = attached(parameters, old)
    rates.attach([new])
    assert hooks_of(old) == 0
    assert effective_rates(parameters, new.step) == times(0.3)


def test_another_state_may_be_loaded_in_mid_run() -> None:
    parameters = make_parameters()
    optimizer = SGD(parameters, lr=0.1)
    attached(parameters, optimizer)
    state = copy.deepcopy(optimizer.state_dict())
    optimizer.param_groups[0]["lr"] = 0.5
    assert effective_rates(parameters, optimizer.step) == times(0.5)
    optimizer.load_state_dict(state)
    assert effective_rates(parameters, optimizer.step) == times(0.1)


class Raises(SGD):
    fails = True

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        assert len(self.param_groups) == 3
        if self.fails:
            raise RuntimeError("out of memory")
        super().step(closure)


def test_a_step_that_raises_leaves_nothing_for_the_next_one() -> None:
    parameters = make_parameters()
    optimizer = Raises(parameters, lr=0.1)
    users = optimizer.param_groups[0]
    rates = attached(parameters, optimizer)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="out of memory"):
            effective_rates(parameters, optimizer.step)
    rates.restore()
    assert optimizer.param_groups[0] is users
    with pytest.raises(RuntimeError, match="out of memory"):
        effective_rates(parameters, optimizer.step)
    optimizer.fails = False
    assert effective_rates(parameters, optimizer.step) == times(0.1)
    assert optimizer.param_groups[0] is users
    assert len(optimizer.param_groups) == 1


def test_a_step_that_raises_leaves_nothing_after_the_end() -> None:
    parameters = make_parameters()
    optimizer = Raises(parameters, lr=0.1)
    users = optimizer.param_groups[0]
    rates = attached(parameters, optimizer)
    with pytest.raises(RuntimeError, match="out of memory"):
        effective_rates(parameters, optimizer.step)
    rates.detach()
    assert optimizer.param_groups == [users]


def test_a_closure_that_raises_leaves_the_users_groups() -> None:
    parameters = make_parameters()
    optimizer = SGD(parameters, lr=0.1)
    users = optimizer.param_groups[0]
    attached(parameters, optimizer)

    def closure() -> float:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        optimizer.step(closure)
    assert optimizer.param_groups == [users]
    assert effective_rates(parameters, optimizer.step) == times(0.1)


class Parent(Optimizer):
    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        if closure is not None:
            closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.sub_(parameter.grad, alpha=group["lr"])


class Counts(Parent):
    def step(self, closure: Any = None) -> None:
        super().step(closure)
        for number, group in enumerate(self.param_groups):
            group["count"] = group.get("count", 0) + number + 1


class Child(Parent):
    """Moves the parameters once more after its parent."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.sub_(parameter.grad, alpha=group["lr"])


def test_a_step_that_calls_its_parents_is_one_step() -> None:
    Parent(make_parameters(), lr=0.1)  # torch hooks the step of a class when the first object of it is made
    parameters = make_parameters()
    optimizer = Child(parameters, lr=0.1)
    attached(parameters, optimizer)
    steps = OptimizerSteps()
    steps.attach([optimizer])
    assert effective_rates(parameters, optimizer.step) == times(0.2)
    assert effective_rates(parameters, lambda: optimizer.step(lambda: 0.0)) == times(0.2)
    assert len(optimizer.param_groups) == 1
    assert steps.total == 2


class IgnoresItsClosure(Parent):
    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        super().step()


class CallsItsClosureLate(Parent):
    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        first = self.param_groups[0]
        closure()
        assert first is self.param_groups[0]
        super().step()


@pytest.mark.parametrize("kind", [IgnoresItsClosure, CallsItsClosureLate])
def test_a_step_may_treat_its_closure_in_its_own_way(kind: type[Parent]) -> None:
    parameters = make_parameters()
    optimizer = kind(parameters, lr=0.1)
    attached(parameters, optimizer)
    assert effective_rates(parameters, lambda: optimizer.step(lambda: 0.0)) == times(0.1)


def test_the_hooks_of_others_see_and_write_the_users_groups() -> None:
    parameters = make_parameters()
    optimizer = SGD(parameters, lr=0.1)
    seen = []

    def before(*_: Any) -> None:
        seen.append(len(optimizer.param_groups))
        optimizer.param_groups[0]["lr"] = 0.3

    def after(*_: Any) -> None:
        seen.append(len(optimizer.param_groups))
        optimizer.param_groups[0]["lr"] = 0.1

    optimizer.register_step_post_hook(after)
    rates = attached(parameters, optimizer)
    optimizer.register_step_pre_hook(before)
    rates.move_innermost()
    assert effective_rates(parameters, optimizer.step) == times(0.3)
    assert effective_rates(parameters, optimizer.step) == times(0.3)
    assert seen == [1] * 4
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_an_optimizer_can_be_copied_in_mid_run() -> None:
    parameters = make_parameters()
    optimizer = SGD(parameters, lr=0.1)
    attached(parameters, optimizer)
    effective_rates(parameters, optimizer.step)
    copied = copy.deepcopy(optimizer)
    assert hooks_of(copied) == 0
    assert len(copied.param_groups) == 1


def test_named_parameters_keep_their_names() -> None:
    parameters = make_parameters()
    optimizer = SGD([(f"layer{i}", parameter) for i, parameter in enumerate(parameters)], lr=0.1)
    attached(parameters, optimizer)
    seen = []
    step = optimizer._init_group
    optimizer._init_group = lambda group, *args: (seen.append(list(group["param_names"])), step(group, *args))[1]
    effective_rates(parameters, optimizer.step)
    assert seen == [["layer0", "layer1"], ["layer2", "layer3"], ["layer4", "layer5"]]


def test_a_compiled_step_is_scaled() -> None:
    parameters = make_parameters()
    optimizer = SGD(parameters, lr=0.1)
    attached(parameters, optimizer)
    compiled = torch.compile(optimizer.step, backend="eager")
    for lr in (0.1, 0.2, 0.3):
        optimizer.param_groups[0]["lr"] = lr
        assert effective_rates(parameters, compiled) == times(lr)
        assert len(optimizer.param_groups) == 1


def test_a_gradient_scaler_steps_at_the_scaled_rates() -> None:
    parameters = make_parameters()
    optimizer = SGD(parameters, lr=0.1)
    attached(parameters, optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)

    def step() -> None:
        scaler.scale(torch.zeros(()))
        scaler.step(optimizer)
        scaler.update()

    assert effective_rates(parameters, step) == times(0.1)


def test_a_refused_optimizer_leaves_no_hooks_on_the_others() -> None:
    parameters = make_parameters()
    accepted = SGD(parameters[:2], lr=0.1)
    rates = OptimizerRates()
    rates.sources.append(Factors(parameters, FACTORS))
    with pytest.raises(ConfigurationError, match="LBFGS"):
        rates.attach([accepted, LBFGS(parameters[2:4])])
    rates.detach()
    assert hooks_of(accepted) == 0


def test_the_state_of_groups_that_were_split_for_good_is_ignored() -> None:
    parameters = make_parameters()
    optimizer = SGD(parameters, lr=0.1)
    rates = attached(parameters, optimizer, state=[[{"lr": 0.5, "momentum": 0}]])
    assert effective_rates(parameters, optimizer.step) == times(0.1)
    assert rates.state_dict() is None


def test_the_state_outlives_the_end_of_a_fit() -> None:
    parameters = make_parameters()
    optimizer = Counts(parameters, lr=0.1)
    rates = attached(parameters, optimizer)
    effective_rates(parameters, optimizer.step)
    state = rates.state_dict()
    assert state is not None
    rates.detach()
    assert rates.state_dict() == state
    rates.attach([optimizer])
    assert rates.state_dict() == state


def test_two_sources_multiply() -> None:
    parameters = make_parameters()
    optimizer = SGD(parameters, lr=0.1)
    rates = attached(parameters, optimizer)
    rates.detach()
    rates.sources *= 2
    rates.attach([optimizer])
    assert effective_rates(parameters, optimizer.step) == times(0.1, [factor**2 for factor in FACTORS])


def test_rates_of_layers_have_stable_names() -> None:
    parameters = make_parameters()
    optimizers = [SGD(parameters[:2], lr=0.1), AdamW(parameters[2:4], lr=0.2), SGD(parameters[4:], lr=0.3)]
    rates = attached(parameters, optimizers)
    layers = {"embeddings": parameters[:1], "layer1": parameters[1:3], "head": parameters[3:], "empty": []}
    expected = {
        "lr-SGD/embeddings": [0.025],
        "lr-SGD/layer1": [0.025],
        "lr-AdamW/layer1": [0.1],
        "lr-AdamW/head": [0.1],
        "lr-SGD-1/head": [0.3],
    }
    assert layer_rates(rates, optimizers, layers) == expected
    for optimizer in optimizers:
        set_gradients(parameters, 0)
        optimizer.step()
    assert layer_rates(rates, optimizers, layers) == expected
    rates.detach()
    assert layer_rates(rates, optimizers[:1], layers) == {"lr-SGD/embeddings": [0.1], "lr-SGD/layer1": [0.1]}


def test_rates_without_sources_are_the_users() -> None:
    parameters = make_parameters()
    optimizer = SGD(parameters, lr=0.1)
    rates = OptimizerRates()
    rates.attach([optimizer])
    assert set(rates.rates_of(optimizer).values()) == {0.1}
