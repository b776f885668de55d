"""Freezing while one of several optimizers is toggled by Lightning's ``toggle_optimizer``.

Toggling sets ``requires_grad=False`` on the parameters of all other optimizers and records what to restore. A freeze
that changes in the meantime has to change that record.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lightning.pytorch import LightningModule
from torch.nn import Parameter


@contextmanager
def untoggled(module: LightningModule) -> Iterator[None]:
    """Undo a toggling within a context; untoggling later restores ``requires_grad`` as it is set in here.

    Args:
        module: The module that is being fitted.
    """
    notes = _notes(module)
    if not notes:
        yield
        return
    toggled = _toggled_parameters(module, notes)
    for parameter, given in notes.items():
        parameter.requires_grad_(given)
    try:
        yield
    finally:
        for parameter in notes:
            notes[parameter] = parameter.requires_grad
            parameter.requires_grad_(parameter.requires_grad and parameter in toggled)


def untoggle(module: LightningModule) -> None:
    """End a toggling that was left open, as after an exception in a training step."""
    notes = _notes(module)
    for parameter, given in notes.items():
        parameter.requires_grad_(given)
    notes.clear()


def _notes(module: LightningModule) -> dict[Parameter, bool]:
    # Private, and annotated as if its keys were names; nothing public tells whether an optimizer is toggled.
    return getattr(module, "_param_requires_grad_state", {})


def _toggled_parameters(module: LightningModule, notes: dict[Parameter, bool]) -> set[Parameter]:
    for optimizer in module.trainer.optimizers:
        parameters = {parameter for group in optimizer.param_groups for parameter in group["params"]}
        # All other optimizers' parameters have been switched off; of the toggled one's, those that were given.
        if any(p.requires_grad for p in parameters) and all(p in parameters for p in notes if p.requires_grad):
            return parameters
    return set()
