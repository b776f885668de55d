"""The learning rates that an optimizer sees within its step; outside of it the groups show the user's."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch.nn import Parameter
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

Note = Callable[[dict[Parameter, float]], None]


class StepRates:
    """Records the rates of each step. Start again before each batch, after all other callbacks.

    Hooks run in the order of their registration, and those of the package are the innermost ones at that moment.
    """

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []

    def begin(self, optimizers: Iterable[Optimizer], note: Note) -> None:
        self.end()
        self._handles = [optimizer.register_step_pre_hook(noting(note)) for optimizer in optimizers]

    def end(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []


def noting(note: Note) -> Callable[..., Any]:
    """A hook before the step that notes the rates once the closure, if there is one, has run."""

    def hook(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            note(rates_of(optimizer))
            return None

        def closure_and_note() -> Any:
            output = closure()
            note(rates_of(optimizer))
            return output

        return args[:1], {**kwargs, "closure": closure_and_note}

    return hook


def rates_of(optimizer: Optimizer) -> dict[Parameter, float]:
    return {p: float(group["lr"]) for group in optimizer.param_groups for p in group["params"]}
