"""The pictures of a plan: when each layer trains at which rate, and the memory and time of a step in each phase.

Needs the extra ``report`` (matplotlib).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from lightning_freeze.pages.scales import log_colorbar, log_norm
from lightning_freeze.pages.style import (
    BLUE,
    FROZEN,
    GREEN,
    GREY,
    ORANGE,
    SKY_BLUE,
    STYLE,
    TEXT,
    VERMILION,
    shortened,
)
from lightning_freeze.plan.records import PlannedPhase, PlanRecord

_PARTS = {"weights": GREY, "gradients": ORANGE, "optimizer": SKY_BLUE, "activations": GREEN}
_FREEZING, _CACHED, _LIMIT = BLUE, ORANGE, VERMILION
_WIDTH = 9.0


class Picture(NamedTuple):
    """One picture.

    Attributes:
        title: Its title.
        height: Its height in inches.
        draw: Draws it.
    """

    title: str
    height: float
    draw: Callable[[Axes, PlanRecord], None]


def pictures_of(plan: PlanRecord) -> list[Picture]:
    """The pictures of a plan: of memory and time only if they are known."""
    found = [Picture("When which layer trains", 1.2 + 0.26 * len(plan.phases[0].layers), _draw_timeline)]
    if plan.peak() is not None:
        found.append(Picture("Memory", 1.3 + 0.3 * len(plan.phases), _draw_memory))
        found.append(Picture("Time", 1.3 + 0.36 * len(plan.phases), _draw_time))
    return found


def draw_figure(plan: PlanRecord, pictures: Sequence[Picture], titles: bool = True) -> Figure:
    """Draw pictures below one another.

    Args:
        plan: The plan.
        pictures: Some of :func:`pictures_of`.
        titles: Whether each has its title above it.
    """
    heights = [picture.height for picture in pictures]
    with rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, sum(heights)), layout="constrained")
        axes = figure.subplots(len(pictures), 1, gridspec_kw={"height_ratios": heights}, squeeze=False)
        for picture, (ax,) in zip(pictures, axes, strict=True):
            picture.draw(ax, plan)
            if titles:
                ax.set_title(picture.title, loc="left", fontweight="bold", color=TEXT)
    return figure


def _draw_timeline(ax: Axes, plan: PlanRecord) -> None:
    layers = plan.phases[0].layers
    rates = [rate for phase in plan.phases for layer in phase.layers for rate in layer.rates if rate > 0]
    lowest, highest = (min(rates), max(rates)) if rates else (1.0, 1.0)
    norm = log_norm(rates)
    colours = colormaps["cividis"]
    end = _end(plan)
    for phase in plan.phases:
        stop = end if phase.last_batch is None else phase.last_batch
        for row, layer in enumerate(phase.layers):
            rate = layer.rates[-1] if layer.rates else 0.0
            trains = colours(norm(rate)) if rate > 0 else colours(0.0)
            colour = trains if layer.trainable else FROZEN
            ax.barh(row, stop - phase.first_batch, left=phase.first_batch, height=0.86, color=colour, linewidth=0)
        if phase.begins_open or phase.first_batch:
            ax.axvline(phase.first_batch, color=TEXT, linewidth=0.8, linestyle=":" if phase.begins_open else "-")
    ax.set_yticks(range(len(layers)), [shortened(layer.name) for layer in layers])
    ax.set_ylim(-0.6, len(layers) - 0.4)
    ax.set_xlim(0, end)
    ax.set_xlabel("training batch" + (" (a dotted line is the earliest batch)" if _is_open(plan) else ""))
    if lowest == highest:
        handles = [Patch(color=FROZEN, label="frozen")]
        if rates:
            handles.append(Patch(color=colours(norm(lowest)), label=f"trains at {lowest:.3g}"))
        _legend(ax, handles=handles)
    else:
        log_colorbar(ax, norm, colours, "highest learning rate")
        _legend(ax, handles=[Patch(color=FROZEN, label="frozen")])


def _draw_memory(ax: Axes, plan: PlanRecord) -> None:
    bars = [(f"phase {phase.number}", phase.memory) for phase in plan.phases]
    if plan.full is not None:
        bars.append(("full fine-tuning", plan.full))
    unit, name = (2**30, "GiB") if max(m.total for _, m in bars if m) >= 2**30 else (2**20, "MiB")
    lefts = [0.0] * len(bars)
    for part, colour in _PARTS.items():
        widths = [getattr(memory, part) / unit for _, memory in bars]
        ax.barh(range(len(bars)), widths, left=lefts, color=colour, label=part, height=0.7)
        lefts = [left + width for left, width in zip(lefts, widths, strict=True)]
    if plan.memory_limit is not None:
        ax.axvline(plan.memory_limit / unit, color=_LIMIT, linewidth=1.5, label="limit")
    _finish(ax, [label for label, _ in bars], f"{name} that a training step keeps")


def _draw_time(ax: Axes, plan: PlanRecord) -> None:
    known = [(phase, phase.time) for phase in plan.phases if phase.time is not None]
    for offset, colour, label, values in (
        (-0.2, _FREEZING, "freezing", [time.freezing for _, time in known]),
        (
            0.2,
            _CACHED,
            "with FrozenPrefixCache",
            [time.freezing if time.cached is None else time.cached for _, time in known],
        ),
    ):
        rows = [row + offset for row in range(len(known))]
        bars = ax.barh(rows, values, height=0.36, color=colour, label=label)
        ax.bar_label(bars, fmt="%.2f", padding=3, fontsize=8, color=TEXT)
    ax.axvline(1.0, color=TEXT, linewidth=0.8, linestyle="--", label="full fine-tuning")
    ax.set_xlim(0, 1.12 * max(1.0, *(time.freezing for _, time in known)))
    _finish(ax, [f"phase {phase.number}" for phase, _ in known], "time of a training step, full fine-tuning is 1")


def _finish(ax: Axes, labels: Sequence[str], xlabel: str) -> None:
    ax.set_yticks(range(len(labels)), labels)
    ax.invert_yaxis()
    ax.set_xlabel(xlabel)
    _legend(ax)


def _legend(ax: Axes, **options: Any) -> None:
    ax.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), frameon=False, ncols=5, fontsize=9, **options)


def _end(plan: PlanRecord) -> int:
    last: PlannedPhase = plan.phases[-1]
    return last.last_batch if last.last_batch is not None else last.first_batch + plan.batches_per_epoch


def _is_open(plan: PlanRecord) -> bool:
    return any(phase.begins_open for phase in plan.phases)
