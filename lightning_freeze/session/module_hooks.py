"""The two moments of a module for which Lightning has no callback hook: when it is built, and its optimizers are made.

Freezing must come before the strategy wraps the model, and after the module has built all of it. Lightning calls
``Callback.setup``, ``LightningModule.setup`` and ``configure_model`` in this order, so the last one that the module
overrides marks the moment. No callback hook lies between it and the wrap, so the method itself is wrapped.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import wraps
from typing import Any

from lightning.pytorch import LightningModule

from lightning_freeze.namespaces import overrides


def call_when_built(module: LightningModule, built: Callable[[], None]) -> Callable[[], None]:
    """Call a function once, as soon as the module has all its parameters.

    Args:
        module: The module that is being fitted, in ``Callback.setup``.
        built: What to call.

    Returns:
        Undoes it; after the call there is nothing left to undo.
    """
    name = "configure_model" if overrides("configure_model", module) else "setup"
    is_built = False

    def wrapper(original: Callable[..., Any]) -> Callable[..., Any]:
        def build(*args: Any, **kwargs: Any) -> Any:
            nonlocal is_built
            output = original(*args, **kwargs)
            if not is_built:
                is_built = True
                undo()
                built()
            return output

        return build

    undo = _wrap(module, name, wrapper)
    return undo


def configure_optimizers_within(
    module: LightningModule, context: Callable[[], AbstractContextManager[None]]
) -> Callable[[], None]:
    """Have the module make its optimizers within a context.

    Args:
        module: The module that is being fitted.
        context: Makes the context.

    Returns:
        Undoes it.
    """

    def wrapper(original: Callable[..., Any]) -> Callable[..., Any]:
        def configure_optimizers(*args: Any, **kwargs: Any) -> Any:
            with context():
                return original(*args, **kwargs)

        return configure_optimizers

    return _wrap(module, "configure_optimizers", wrapper)


def _wrap(
    module: LightningModule, name: str, wrapper: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> Callable[[], None]:
    own = vars(module).get(name)
    original = getattr(module, name)
    wrapped = wraps(original)(wrapper(original))
    setattr(module, name, wrapped)

    def undo() -> None:
        if vars(module).get(name) is not wrapped:  # undone already
            return
        if own is None:
            vars(module).pop(name)
        else:
            setattr(module, name, own)

    return undo
