"""Hooks around the step of an optimizer: whether it runs them, in which order, and which of them are nested."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import CodeType, FrameType
from typing import Any, cast

import torch
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

_STEP: CodeType = Optimizer.profile_hook_step(lambda: None).__code__  # the frame of any step that runs hooks


class StepHooks:
    """A pair of hooks right around an optimizer's step.

    Args:
        optimizer: The optimizer.
        before: Called with the optimizer, the arguments and the keyword arguments of ``step``, after all other pre
            hooks. What it returns, if not ``None``, replaces the arguments.
        after: Called in the same way after the step, before all other post hooks. It is not called if the step raises.
    """

    def __init__(self, optimizer: Optimizer, before: Callable[..., Any], after: Callable[..., Any]) -> None:
        self._optimizer = optimizer

        def outermost(hook: Callable[..., Any]) -> Callable[..., Any]:
            def run(*arguments: Any) -> Any:
                return None if is_nested(optimizer) else hook(*arguments)

            return cast("Callable[..., Any]", torch.compiler.disable(run))  # compiled steps run it as it is

        self._handles: list[RemovableHandle] = [
            optimizer.register_step_pre_hook(outermost(before)),
            optimizer.register_step_post_hook(outermost(after)),
        ]
        self.move_innermost()

    def move_innermost(self) -> None:
        """Move the hooks next to the step again, inside those that have been registered since."""
        before, after = self._handles
        # There is no public way to set the order of hooks.
        self._optimizer._optimizer_step_pre_hooks.move_to_end(before.id)  # type: ignore[attr-defined]
        self._optimizer._optimizer_step_post_hooks.move_to_end(after.id, last=False)  # type: ignore[attr-defined]

    def remove(self) -> None:
        """Remove both hooks."""
        for handle in self._handles:
            handle.remove()


def is_nested(optimizer: Optimizer) -> bool:
    """Whether the step whose hook is running has been called by another step of the same optimizer.

    A class whose ``step`` calls that of its parent runs the hooks twice. Unlike a counter, the frames on the stack are
    also right after a step that has raised.
    """
    frame: FrameType | None = sys._getframe(1)
    steps = 0
    while frame is not None and steps < 2:
        steps += frame.f_code is _STEP and frame.f_locals.get("self") is optimizer
        frame = frame.f_back
    return steps == 2


def runs_hooks(optimizer: Any) -> bool:
    """Whether a call of ``optimizer.step()`` runs the hooks that are registered for it."""
    try:
        optimizer.register_step_pre_hook(lambda *_: None).remove()
    except AttributeError:  # no torch optimizer, or one that has not called `super().__init__`
        return False
    return _calls_hooked(optimizer.step, set())


def _calls_hooked(function: Any, seen: set[int]) -> bool:
    # Torch marks the steps that run hooks. A function put in the place of one may still call it.
    if getattr(function, "hooked", False) is True:
        return True
    if id(function) in seen or len(seen) > 100:
        return False
    seen.add(id(function))
    return any(_calls_hooked(callee, seen) for callee in _callees(function))


def _callees(function: Any) -> Iterator[Any]:
    for name in ("__func__", "__wrapped__", "func"):
        yield getattr(function, name, None)
    for cell in getattr(function, "__closure__", None) or ():
        with suppress(ValueError):  # an empty cell
            yield cell.cell_contents
    names = getattr(getattr(function, "__code__", None), "co_names", ())
    for value in (getattr(function, "__globals__", {}).get(name) for name in names):
        yield value.step if isinstance(value, (type, Optimizer)) and hasattr(value, "step") else value
