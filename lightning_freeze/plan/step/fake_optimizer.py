"""A copy of an optimizer over fake parameters: its step shows memory and operations without computing anything."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_freeze.optimizers.group_values import copy_value
from lightning_freeze.optimizers.optimizer_copy import copy_optimizer


def fake_optimizer(
    optimizer: Optimizer, fakes: Mapping[Tensor, Tensor], make_fake: Callable[[Tensor], Tensor]
) -> Optimizer:
    """Copy an optimizer, without its hooks; the state that it has before the first step is faked too.

    Args:
        optimizer: The optimizer.
        fakes: The fake tensor in place of each parameter.
        make_fake: Makes the fake tensor in place of any other.
    """
    groups = [
        {
            **{name: copy_value(value) for name, value in group.items() if name != "params"},
            "params": [fakes[p] for p in group["params"] if p in fakes],
        }
        for group in optimizer.param_groups
    ]
    twin = copy_optimizer(optimizer, groups, {id(parameter): fake for parameter, fake in fakes.items()})
    for parameter, state in optimizer.state.items():
        if parameter in fakes:
            twin.state[fakes[parameter]] = {
                name: make_fake(value) if isinstance(value, Tensor) else value for name, value in state.items()
            }
    return twin


def state_bytes(optimizers: Iterable[Optimizer], fakes: Mapping[Tensor, Tensor]) -> dict[Parameter, int]:
    """Bytes of the tensors that optimizers keep for each parameter.

    Args:
        optimizers: Copies of optimizers.
        fakes: The fake tensor in place of each parameter.
    """
    states = {key: state for optimizer in optimizers for key, state in optimizer.state.items()}
    sizes = {p: sum(_bytes(value) for value in states.get(fake, {}).values()) for p, fake in fakes.items()}
    return {p: size for p, size in sizes.items() if size and isinstance(p, Parameter)}


class AnyValue(TorchDispatchMode):
    """Lets optimizers read values of fake tensors. The size of their state does not depend on them."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        try:
            return func(*args, **(kwargs or {}))
        except DataDependentOutputException:
            return (
                0.5 if args[0].is_floating_point() else 1
            )  # 0.5, since optimizers divide by what they read, and 1 - it


def _bytes(value: Any) -> int:
    return value.nbytes if isinstance(value, Tensor) else 0
