"""Optimizers of unusual kinds: those that drive others, override ``step``, or move frozen parameters."""

from __future__ import annotations

import types
from typing import Any

import pytest
import torch
from rate_toys import FACTORS, attached, effective_rates, hooks_of, make_parameters, set_gradients, weights
from torch.optim import LBFGS, SGD, AdamW, Optimizer

from lightning_freeze.errors import ConfigurationError


def times(lr: float, factors: Any = FACTORS) -> Any:
    return pytest.approx([lr * factor for factor in factors], rel=1e-11)


class SAM(Optimizer):
    """As in the widely used implementation: the optimizer that it drives has the same groups in the same list."""

    def __init__(self, params: Any, base: Any, rho: float = 0.05, **kwargs: Any) -> None:
        super().__init__(params, {"rho": rho, **kwargs})
        self.base_optimizer = base(self.param_groups, **kwargs)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def first_step(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["old"] = parameter.clone()
                parameter.add_(parameter.grad, alpha=group["rho"])

    @torch.no_grad()
    def second_step(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.copy_(self.state[parameter]["old"])
        self.base_optimizer.step()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.first_step()
        closure()
        self.second_step()


def test_sam() -> None:
    parameters = make_parameters()
    optimizer = SAM(parameters, SGD, lr=0.1)
    attached(parameters, optimizer)
    assert effective_rates(parameters, lambda: optimizer.step(lambda: 0.0)) == times(0.1)
    assert len(optimizer.param_groups) == 1

    def by_hand() -> None:
        optimizer.first_step()
        optimizer.second_step()

    assert effective_rates(parameters, by_hand) == times(0.1)
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("name", ["SAM", "Lookahead"])
def test_wrappers_of_pytorch_optimizer(name: str) -> None:
    package = pytest.importorskip("pytorch_optimizer")
    parameters = make_parameters()
    if name == "SAM":
        optimizer = package.SAM(parameters, base_optimizer=SGD, lr=0.1)
    else:
        optimizer = package.Lookahead(SGD(parameters, lr=0.1), k=100)
    attached(parameters, optimizer)

    def closure() -> float:
        assert len(optimizer.param_groups) == 1
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        return 0.0

    for lr in (0.1, 0.2):
        optimizer.param_groups[0]["lr"] = lr
        assert effective_rates(parameters, lambda: optimizer.step(closure)) == times(lr)
        assert len(optimizer.param_groups) == 1


class Joined(Optimizer):
    """Two optimizers behind one step, whose groups stand in one more list."""

    def __init__(self, *optimizers: Optimizer) -> None:
        self.optimizers = optimizers
        super().__init__([group for optimizer in optimizers for group in optimizer.param_groups], {})

    def step(self, closure: Any = None) -> None:
        if closure is not None:
            closure()
        for optimizer in self.optimizers:
            optimizer.step()


class JoinedOnDemand(Joined):
    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    @param_groups.setter
    def param_groups(self, groups: Any) -> None:
        pass

    def add_param_group(self, group: Any) -> None:
        pass


class Unhooked:
    """No torch optimizer, only what Lightning asks for."""

    def __init__(self, *optimizers: Optimizer) -> None:
        self.optimizers = {"first": optimizers[0], "second": optimizers[1]}
        self.defaults: dict[str, Any] = {}
        self.state: dict[Any, Any] = {}
        self.param_groups = [group for optimizer in optimizers for group in optimizer.param_groups]

    def step(self, closure: Any = None) -> None:
        if closure is not None:
            closure()
        for optimizer in self.optimizers.values():
            optimizer.step()


@pytest.mark.parametrize("kind", [Joined, JoinedOnDemand, Unhooked])
def test_two_optimizers_behind_one_step(kind: Any) -> None:
    parameters = make_parameters()
    optimizer = kind(SGD(parameters[:3], lr=0.1), SGD(parameters[3:], lr=0.2))
    rates = attached(parameters, [optimizer])
    users = list(optimizer.param_groups)
    expected = pytest.approx([0.025, 0.025, 0.05, 0.1, 0.2, 0.2])
    for step in (optimizer.step, lambda: optimizer.step(lambda: 0.0), lambda: optimizer.step(closure=lambda: 0.0)):
        assert effective_rates(parameters, step) == expected
        assert all(left is right for left, right in zip(optimizer.param_groups, users, strict=True))
    assert list(rates.rates_of(optimizer).values()) == expected


class CopiesItsRates(Optimizer):
    """Gives the rates of its groups, by index, to those of the one that it drives, as ZeroRedundancyOptimizer."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})
        self.inner = SGD([{"params": group["params"]} for group in self.param_groups], lr=1.0)

    def step(self, closure: Any = None) -> None:
        for group, inner in zip(self.param_groups, self.inner.param_groups, strict=True):
            inner["lr"] = group["lr"]
        self.inner.step(closure)


def test_a_wrapper_that_copies_values_scales_once() -> None:
    parameters = make_parameters()
    optimizer = CopiesItsRates([{"params": parameters[:3]}, {"params": parameters[3:]}], lr=0.1)
    rates = attached(parameters, optimizer)
    for lr in (0.1, 0.2):
        for group in optimizer.param_groups:
            group["lr"] = lr
        assert effective_rates(parameters, lambda: optimizer.step(lambda: 0.0)) == times(lr)
        assert list(rates.rates_of(optimizer).values()) == times(lr)


class OwnAndOther(Optimizer):
    """Moves its own parameters, and has another optimizer move the rest."""

    def __init__(self, own: Any, other: Any, lr: float) -> None:
        super().__init__(own, {"lr": lr})
        self.other = SGD(other, lr=2 * lr)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.sub_(parameter.grad, alpha=group["lr"])
        self.other.step()


def test_an_optimizer_with_another_one_for_the_rest() -> None:
    parameters = make_parameters()
    optimizer = OwnAndOther(parameters[1:], parameters[:1], lr=0.1)
    attached(parameters, optimizer)
    assert effective_rates(parameters, optimizer.step) == times(0.1, [2 * FACTORS[0], *FACTORS[1:]])


def test_step_overridden_on_the_object_may_call_the_original() -> None:
    parameters = make_parameters()
    optimizer = SGD(parameters, lr=0.1)
    original = optimizer.step

    def step(closure: Any = None) -> Any:
        return original(closure)

    optimizer.step = step
    attached(parameters, optimizer)
    assert effective_rates(parameters, optimizer.step) == times(0.1)


def test_step_overridden_on_the_object_may_call_that_of_the_class() -> None:
    parameters = make_parameters()
    optimizer = SGD(parameters, lr=0.1)
    optimizer.step = types.MethodType(lambda self, closure=None: SGD.step(self, closure), optimizer)
    attached(parameters, optimizer)
    assert effective_rates(parameters, optimizer.step) == times(0.1)


def test_step_wrapped_by_a_scheduler_is_no_override() -> None:
    parameters = make_parameters()
    optimizer = SGD(parameters, lr=0.1)
    torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    attached(parameters, optimizer)
    assert effective_rates(parameters, optimizer.step) == times(0.1)


def test_step_overridden_without_the_original_is_refused() -> None:
    parameters = make_parameters()
    optimizer = SGD(parameters, lr=0.1)
    optimizer.step = lambda closure=None: None
    with pytest.raises(ConfigurationError, match=r"SGD.step\(\) does not run the hooks"):
        attached(parameters, optimizer)
    assert hooks_of(optimizer) == 0


class WithoutInit(Optimizer):
    def __init__(self, params: Any, lr: float) -> None:
        self.param_groups = [{"params": list(params), "lr": lr}]
        self.state: Any = {}
        self.defaults: dict[str, Any] = {}

    def step(self, closure: Any = None) -> None:
        pass


def test_an_optimizer_that_runs_no_hooks_is_refused_where_it_should_be_scaled() -> None:
    parameters = make_parameters()
    with pytest.raises(ConfigurationError, match="WithoutInit"):
        attached(parameters, WithoutInit(parameters, lr=0.1))
    attached(parameters, WithoutInit(parameters, lr=0.1), [1.0] * 6, freezes=True)


def test_an_optimizer_that_sets_its_own_rate_is_refused() -> None:
    transformers = pytest.importorskip("transformers")
    parameters = make_parameters()
    with pytest.raises(ConfigurationError, match=r"Adafactor sets its own learning rate .*relative_step=False"):
        attached(parameters, transformers.Adafactor(parameters))
    attached(parameters, transformers.Adafactor(parameters), [1.0] * 6)
    attached(parameters, transformers.Adafactor(parameters, lr=0.1, relative_step=False))


class WithoutRate(Optimizer):
    def __init__(self, params: Any) -> None:
        super().__init__(params, {})

    def step(self, closure: Any = None) -> None:
        pass


def test_an_optimizer_without_a_rate_is_refused() -> None:
    parameters = make_parameters()
    with pytest.raises(ConfigurationError, match="WithoutRate has no learning rate in its parameter groups"):
        attached(parameters, WithoutRate(parameters))


def test_lbfgs_is_refused() -> None:
    parameters = make_parameters()
    with pytest.raises(ConfigurationError, match="LBFGS accepts only one parameter group"):
        attached(parameters, LBFGS(parameters))


def test_prodigy_is_refused_where_it_would_raise_in_its_first_step() -> None:
    prodigyopt = pytest.importorskip("prodigyopt")
    parameters = make_parameters()
    with pytest.raises(ConfigurationError, match="Prodigy does not accept a learning rate for each layer"):
        attached(parameters, prodigyopt.Prodigy(parameters))
    with pytest.raises(ConfigurationError, match="Prodigy does not accept a learning rate for each layer"):
        attached(parameters, prodigyopt.Prodigy(parameters), [lambda: 1.0] * 3 + [1.0] * 3)
    attached(parameters, prodigyopt.Prodigy(parameters), [0.0] * 3 + [1.0] * 3)


class CountsItsGroups(SGD):
    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, lr=lr)
        self.first_rates = [group["lr"] for group in self.param_groups]

    def step(self, closure: Any = None) -> Any:
        for index, group in enumerate(self.param_groups):
            group["lr"] = min(group["lr"], self.first_rates[index])
        return super().step(closure)


def test_an_optimizer_with_a_list_of_its_own_for_its_groups_is_refused() -> None:
    parameters = make_parameters()
    with pytest.raises(ConfigurationError, match=r"CountsItsGroups does not accept .*IndexError"):
        attached(parameters, CountsItsGroups(parameters, lr=0.1))
    attached(parameters, CountsItsGroups(parameters, lr=0.1), [1.0] * 6)


class ZerosMuon(Optimizer):
    """Turns a missing gradient into zeros, as public implementations of Muon do, and goes on with its decay."""

    def __init__(self, params: Any, lr: float = 0.02, momentum: float = 0.9, weight_decay: float = 0.01) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        if closure is not None:
            closure()
        for group in self.param_groups:
            padded = [*group["params"], torch.empty_like(group["params"][-1])]  # fails without any
            for parameter in padded[:-1]:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                momentum.mul_(group["momentum"]).add_(parameter.grad)
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(momentum, alpha=group["lr"])


def freeze(parameters: Any) -> None:
    for parameter in parameters:
        parameter.requires_grad_(False)
        parameter.grad = None


@pytest.mark.parametrize("factors", [(1.0,) * 6, FACTORS])
@pytest.mark.parametrize("lr", [0.02, 1e-9])
def test_an_optimizer_that_moves_without_gradients_does_not_see_frozen_parameters(factors: Any, lr: float) -> None:
    parameters = make_parameters()
    optimizer = ZerosMuon([{"params": parameters[:2]}, {"params": parameters[2:]}], lr=lr)
    torch.manual_seed(0)
    random_state = torch.get_rng_state()
    attached(parameters, optimizer, factors, freezes=True)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not optimizer.state
    for group in optimizer.param_groups:
        group["lr"] = 0.02
    set_gradients(parameters, 0)
    optimizer.step()
    freeze(parameters[:3])  # the whole first group, and a part of the second
    before = weights(parameters)
    for step in range(3):
        set_gradients(parameters[3:], step)
        optimizer.step()
    moved = [not torch.equal(*pair) for pair in zip(before, weights(parameters), strict=True)]
    assert moved == [False] * 3 + [True] * 3
    assert all(parameter.grad is None for parameter in parameters[:3])
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 4]


def test_without_us_that_optimizer_moves_frozen_parameters() -> None:
    parameters = make_parameters()
    optimizer = ZerosMuon(parameters)
    attached(parameters, optimizer, [1.0] * 6, freezes=False)
    freeze(parameters[:3])
    before = weights(parameters)
    set_gradients(parameters[3:], 0)
    optimizer.step()
    assert not torch.equal(before[0], parameters[0])


@pytest.mark.parametrize(
    "name", ["Lion", "SOAP", "Prodigy", "Muon", "ScheduleFreeAdamW", "Lamb", "Ranger21", "AdamP", "SPAM"]
)
def test_optimizers_that_skip_parameters_without_gradients_are_not_touched(name: str) -> None:
    package = pytest.importorskip("pytorch_optimizer")
    parameters = make_parameters()
    options = {"num_iterations": 100} if name == "Ranger21" else {}
    groups: Any = [{"params": parameters, "use_muon": True}] if name == "Muon" else parameters
    optimizer = getattr(package, name)(groups, **options)
    before = weights(parameters)
    attached(parameters, optimizer, [1.0] * 6, freezes=True)
    assert hooks_of(optimizer) == 0
    assert not any(parameter.grad is not None for parameter in parameters)
    assert all(map(torch.equal, before, weights(parameters)))


@pytest.mark.parametrize("name", ["AdamWScheduleFree", "SGDScheduleFreeClosure"])
def test_an_optimizer_that_steps_in_train_mode_or_with_a_closure_only_is_not_touched(name: str) -> None:
    parameters = make_parameters()
    optimizer = getattr(pytest.importorskip("schedulefree"), name)(parameters, lr=0.1)
    attached(parameters, optimizer, [1.0] * 6, freezes=True)
    assert hooks_of(optimizer) == 0
    assert not optimizer.param_groups[0].get("train_mode")


def test_a_class_that_inherits_its_step_from_torch_is_not_tried() -> None:
    seen: list[float] = []

    class Watched(AdamW):
        def _init_group(self, group: dict[str, Any], *args: Any) -> Any:
            seen.append(group["lr"])
            return super()._init_group(group, *args)

    parameters = make_parameters()
    optimizer = Watched(parameters, lr=0.1)
    attached(parameters, optimizer, freezes=True)
    assert seen == []
    set_gradients(parameters, 0)
    optimizer.step()
    assert seen == times(0.1, [0.25, 0.5, 1.0])


def test_torchs_own_optimizers_are_not_tried() -> None:
    parameters = make_parameters()
    optimizer = AdamW(parameters)
    optimizer.own = torch.nn.Linear(1, 1)
    attached(parameters, optimizer, [1.0] * 6, freezes=True)
    assert hooks_of(optimizer) == 0
