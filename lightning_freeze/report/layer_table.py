"""The table of layers x status x learning rate, as text."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from rich import box
from rich.table import Table

from lightning_freeze.layers.wording import count, render, span
from lightning_freeze.report.layer_rows import LayerRow


def layer_table(rows: Sequence[LayerRow], ended: bool = False) -> str:
    """The layers of a run with their status and learning rate, equal neighbours joined.

    Args:
        rows: One record for each layer, in order.
        ended: Whether training is over, so that the table tells what happened rather than what holds.
    """
    cells = [(_status(row, ended), _since(row) if ended else "", _rate(row)) for row in rows]
    shows_since = any(since for _, since, _ in cells)
    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"Layers at the {'end' if ended else 'start'} of training",
        title_justify="left",
        title_style="bold",
    )
    groups = [(cell, [row for _, row in run]) for cell, run in groupby(zip(cells, rows, strict=True), lambda p: p[0])]
    names = [span([row.name for row in layers]) for _, layers in groups]
    table.add_column("layers", overflow="fold")  # a long name is broken, never cut
    table.add_column("parameters", justify="right", no_wrap=True)
    table.add_column("status")
    if shows_since:
        table.add_column("trained since")
    table.add_column("learning rate", justify="right", no_wrap=True)
    for name, ((status, since, rate), layers) in zip(names, groups, strict=True):
        size = count(sum(row.size for row in layers))
        line = [name, size, status, *([since] if shows_since else []), rate]
        table.add_row(*line, style="dim" if status in ("frozen", "takes no part") else None)
    return render(table)


def _status(row: LayerRow, ended: bool) -> str:
    if not row.tensors:
        return "no parameters"
    if row.is_bystander:
        return "takes no part"
    if not row.trainable:
        return "frozen"
    trains = "trained" if ended else "trains"
    return trains if row.trainable == row.tensors else f"{trains} {row.trainable} of {row.tensors} tensors"


def _since(row: LayerRow) -> str:
    return "" if row.since is None else f"epoch {row.since.epoch}, step {row.since.step}"


def _rate(row: LayerRow) -> str:
    if not row.rates:
        return "-"
    lowest, highest = row.rates[0], row.rates[-1]
    return f"{lowest:.3g}" if lowest == highest else f"{lowest:.3g} to {highest:.3g}"
