"""The chart of memory: what a training step keeps in each phase, beside full fine-tuning and the plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_freeze.cache.store.sizes import show_size
from lightning_freeze.pages.style import GREY, ORANGE, SKY_BLUE, TEXT, VERMILION
from lightning_freeze.run_report.page.canvas import legend_above, phase_axis
from lightning_freeze.run_report.page.chart import Chart, Table
from lightning_freeze.run_report.page.view import View

_UNITS = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "bytes"))
_PARTS = (("weights", GREY), ("gradients", ORANGE), ("optimizer", SKY_BLUE))


@dataclass(frozen=True)
class _Bar:
    """Bytes of one row: the parts, what the accelerator had allocated, and what the plan says of all parts together."""

    label: str
    parts: tuple[int, int, int]
    allocated: int | None = None
    planned: int | None = None


def memory_chart(view: View) -> Chart | None:
    """The chart; none before anything was measured."""
    bars = _bars(view)
    if not bars:
        return None
    note = "What a training step keeps, without activations. Full fine-tuning is estimated from this run."
    columns = ["phase", *(name for name, _ in _PARTS), "together"]
    rows = [[bar.label, *map(show_size, bar.parts), show_size(sum(bar.parts))] for bar in bars]
    for name, sizes in (
        ("allocated", [bar.allocated for bar in bars]),
        ("planned", [bar.planned for bar in bars]),
    ):
        if any(sizes):
            columns.append(name)
            for row, size in zip(rows, sizes, strict=True):
                row.append("-" if size is None else show_size(size))
    if "allocated" in columns:
        note += " Allocated is the most that the accelerator held when backward began, activations included."
    height = 1.3 + 0.3 * len(bars)
    return Chart("memory", "Memory", note, lambda figure: _draw(figure, view, bars), Table(columns, rows), height)


def _bars(view: View) -> list[_Bar]:
    known = [phase.memory for phase in view.phases if phase.memory is not None]
    if not known:
        return []
    bars = []
    for number, (phase, plan) in enumerate(zip(view.phases, view.planned, strict=True), start=1):
        memory = phase.memory
        if memory is None:
            bars.append(_Bar(str(number), (0, 0, 0)))
            continue
        planned = None
        if plan is not None and plan.gradients is not None and plan.optimizer is not None:
            planned = memory.weights + plan.gradients + plan.optimizer
        parts = memory.weights, memory.gradients, memory.optimizer
        bars.append(_Bar(str(number), parts, memory.allocated, planned))
    full = max(known, key=lambda memory: memory.full_optimizer)
    return [*bars, _Bar("full fine-tuning", (full.weights, full.full_gradients, full.full_optimizer))]


def _draw(figure: Figure, view: View, bars: Sequence[_Bar]) -> None:
    ax = figure.subplots()
    largest = max(sum(bar.parts) for bar in bars)
    unit, name = next(each for each in _UNITS if largest >= each[0] or each[0] == 1)
    left = [0.0] * len(bars)
    for part, (label, colour) in enumerate(_PARTS):
        widths = [bar.parts[part] / unit for bar in bars]
        ax.barh(range(len(bars)), widths, left=left, color=colour, label=label, height=0.66)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    _mark(ax, [bar.allocated for bar in bars], unit, "allocated", marker="D", color=VERMILION, markersize=6)
    _mark(ax, [bar.planned for bar in bars], unit, "planned", marker="|", color=TEXT, markersize=16, markeredgewidth=2)
    phase_axis(ax, view, ("full fine-tuning",))
    ax.set_xlabel(name)
    handles, labels = ax.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda i: labels[i] in ("allocated", "planned"))  # the parts come first
    legend_above(ax, 3, handles=[handles[i] for i in order], labels=[labels[i] for i in order])


def _mark(ax: Axes, sizes: Sequence[int | None], unit: int, label: str, **style: object) -> None:
    found = [(size / unit, row) for row, size in enumerate(sizes) if size is not None]
    if found:
        ax.plot(*zip(*found, strict=True), linestyle="", label=label, **style)  # type: ignore[arg-type]
