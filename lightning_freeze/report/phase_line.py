"""The line that is printed at each change of phase."""

from __future__ import annotations

from torch.nn import Module

from lightning_freeze.layers.analysis.unused_copies import unused_copies
from lightning_freeze.layers.wording import count, spans
from lightning_freeze.schedule.triggers import Clock
from lightning_freeze.session.observer import PhaseChange


def phase_line(change: PhaseChange, module: Module, clock: Clock) -> str:
    """One line for a change of phase: where the run stands and what trains now.

    Args:
        change: The phase that begins.
        module: The module that is being fitted.
        clock: Where the run stands.
    """
    unused = unused_copies(module)
    parameters = [p for p in module.parameters() if p not in unused]
    total = sum(p.numel() for p in parameters)
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    last = len(change.plan) - 1
    trigger = change.plan[change.phase].until if change.phase < last else None
    until = f" until {trigger}" if trigger is not None else ""
    back = "" if change.restored is None else f" Back to the weights with {change.monitor}={change.restored:.4g}."
    return (
        f"Epoch {clock.epoch}, step {clock.step}: phase {change.phase + 1} of {len(change.plan)} "
        f"trains {spans(change.layers, change.names)} ({count(trainable)} of {count(total)} parameters)"
        f"{change.plan[change.phase].rate_words}{until}.{back}"
    )
