"""How layer names, counts and tables are worded, wherever they are printed."""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO

from rich.console import Console
from rich.table import Table

from lightning_freeze.layers.layer import Layer, Layers

WIDTH = 88


def abbreviate(stack: Layers) -> str:
    """The names of all layers on one line, long runs of blocks shortened: ``embeddings, 0 ... 11, head``."""
    runs: list[list[Layer]] = []
    for layer in stack:
        last = runs[-1][-1] if runs else None
        if layer.kind == "block" and last is not None and last.kind == "block" and last.tower == layer.tower:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(
        f"{run[0].name} ... {run[-1].name}" if len(run) > 2 else ", ".join(layer.name for layer in run) for run in runs
    )


def runs(stack: Layers, names: Sequence[str]) -> str:
    """Layer names in stack order, neighbouring blocks shortened: ``embeddings, 0 ... 7``."""
    groups: list[list[str]] = []
    last = None
    for layer in stack:
        if layer.name not in names:
            continue
        follows = last is not None and last.index == layer.index - 1 and last.tower == layer.tower
        if follows and last is not None and last.is_block and layer.is_block:
            groups[-1].append(layer.name)
        else:
            groups.append([layer.name])
        last = layer
    return ", ".join(f"{g[0]} ... {g[-1]}" if len(g) > 2 else ", ".join(g) for g in groups)


def spans(names: Sequence[str], order: Sequence[str]) -> str:
    """Layer names with runs of neighbours shortened: ``0 ... 7, head``."""
    runs: list[list[str]] = []
    for name in names:
        if runs and order.index(name) == order.index(runs[-1][-1]) + 1 and _is_block(name) and _is_block(runs[-1][0]):
            runs[-1].append(name)
        else:
            runs.append([name])
    return ", ".join(span(run) for run in runs)


def percent(share: float) -> str:
    """A share of the parameters in whole percents, in tenths below one: ``24%``, ``0.3%``, ``<0.1%``."""
    if share >= 0.01 or share == 0:
        return f"{share:.0%}"
    return f"{share:.1%}" if share >= 0.0005 else "<0.1%"


def _is_block(name: str) -> bool:
    return name.rsplit(".", 1)[-1].isdigit()


def span(names: Sequence[str]) -> str:
    """One run of neighbours, shortened: ``0 ... 7``."""
    if len(names) <= 2:
        return ", ".join(names)
    return f"{names[0]} ... {names[-1]}"


def count(number: int) -> str:
    """A parameter count in a short form: 950, 12.3K, 22.7M, 1.5B."""
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return str(number)


def render(table: Table, width: int = WIDTH) -> str:
    """A table as plain text of a fixed width, so that it reads the same in a terminal, a log file and a test."""
    buffer = StringIO()
    Console(file=buffer, width=width).print(table)
    return "\n".join(line.rstrip() for line in buffer.getvalue().rstrip().splitlines())
