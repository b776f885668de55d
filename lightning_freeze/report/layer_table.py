"""What a run says about itself: the table of layers and the line at each change of phase."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, NamedTuple

from rich import box
from rich.table import Table
from torch.nn import Parameter

from lightning_freeze.layers import Layer
from lightning_freeze.layers.analysis.unused_copies import unused_copies
from lightning_freeze.layers.table import sharing
from lightning_freeze.layers.wording import count, render, span, spans

if TYPE_CHECKING:
    from lightning_freeze.callbacks.phased_fine_tuning import PhasedFineTuning
    from lightning_freeze.session.session import Session


class _Row(NamedTuple):
    """One layer, or several alike."""

    names: list[str]
    size: int
    status: str
    rate: str
    since: str


def layer_table(session: Session, ended: bool = False) -> str:
    """The layers of a run with their status and learning rate, equal neighbours joined.

    Args:
        session: The running fit.
        ended: Whether training is over, so that the table tells what happened rather than what holds.
    """
    stack = session.stack
    rates = _rates(session)
    rows: list[_Row] = []
    copies = unused_copies(session.module)
    for layer in stack:
        row = _row(layer, session, rates, ended, copies)
        if rows and rows[-1][2:] == row[2:]:
            rows[-1] = rows[-1]._replace(names=[*rows[-1].names, layer.name], size=rows[-1].size + row.size)
        else:
            rows.append(row)
    shows_since = any(row.since for row in rows)
    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"Layers at the {'end' if ended else 'start'} of training",
        title_justify="left",
        title_style="bold",
    )
    table.add_column("layers")
    table.add_column("parameters", justify="right")
    table.add_column("status")
    if shows_since:
        table.add_column("trained since")
    table.add_column("learning rate", justify="right")
    for row in rows:
        cells = [span(row.names), count(row.size), row.status, *([row.since] if shows_since else []), row.rate]
        table.add_row(*cells, style="dim" if row.status.startswith("frozen") else None)
    return "\n".join([render(table), *([] if ended else sharing(stack))])


def phase_line(callback: PhasedFineTuning, session: Session, restored: float | None) -> str:
    """One line for a change of phase: where the run stands and what trains now."""
    plan, number = callback.plan, callback.phase
    copies = unused_copies(session.module)
    parameters = [p for p in session.module.parameters() if p not in copies]
    trainable = [p for p in parameters if p.requires_grad]
    total = sum(p.numel() for p in parameters)
    share = sum(p.numel() for p in trainable)
    layers = [layer.name for layer in callback.stack if any(p.requires_grad for p in layer.parameters())]
    until = f" until {plan[number].until}" if plan[number].until is not None and number < len(plan) - 1 else ""
    back = "" if restored is None else f" Back to the weights with {callback.monitor}={restored:.4g}."
    return (
        f"Epoch {session.trainer.current_epoch}, step {session.trainer.global_step}: phase {number + 1} of {len(plan)} "
        f"trains {spans(layers, callback.stack.names)} ({count(share)} of {count(total)} parameters){until}.{back}"
    )


def _row(
    layer: Layer, session: Session, rates: dict[Parameter, float], ended: bool, unused: AbstractSet[Parameter]
) -> _Row:
    parameters = [parameter for parameter in layer.parameters() if parameter not in unused]
    trains = [p for p in parameters if p.requires_grad]
    if not parameters:
        status = "no parameters"
    elif not trains:
        status = "frozen"
    elif len(trains) == len(parameters):
        status = "trained" if ended else "trains"
    else:
        status = f"{'trained' if ended else 'trains'} {len(trains)} of {len(parameters)} tensors"
    since = ""
    starts = {session.since[p] for p in trains if p in session.since}
    if ended and starts:
        epoch, step = max(starts)
        since = f"epoch {epoch}, step {step}"
    return _Row([layer.name], sum(p.numel() for p in parameters), status, _rate(trains, rates), since)


def _rates(session: Session) -> dict[Parameter, float]:
    return {
        parameter: float(group["lr"])
        for optimizer in session.trainer.optimizers
        for group in optimizer.param_groups
        if group.get("lr") is not None
        for parameter in group["params"]
    }


def _rate(parameters: Iterable[Parameter], rates: dict[Parameter, float]) -> str:
    values = sorted({rates[p] for p in parameters if p in rates})
    if not values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:.3g}"
    return f"{values[0]:.3g} to {values[-1]:.3g}"
