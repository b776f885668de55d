"""The pictures of a plan: when each layer trains at which rate, and the memory and time of a step in each phase.

Needs the extra ``report`` (matplotlib). The palettes are safe for colour-blind readers (viridis, and that of Okabe
and Ito, 2008).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import StringIO
from typing import Any, NamedTuple

from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy import linspace

from lightning_freeze.plan.records import PlannedPhase, PlanRecord

_FROZEN = "#b8b8b8"
_PARTS = {"weights": "#999999", "gradients": "#E69F00", "optimizer": "#56B4E9", "activations": "#009E73"}
_FREEZING, _CACHED, _LIMIT = "#0072B2", "#E69F00", "#D55E00"
_WIDTH = 9.0
#: Up to how many bars the timeline is a vector drawing. More would make a page too large to be mailed.
_MOST_BARS = 2000
#: Placeholder for the text colour, which a page sets for its light and dark variants.
_TEXT = "#010203"
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    **{f"{name}color": _TEXT for name in ("text.", "axes.label", "xtick.", "ytick.", "axes.edge")},
}


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
    with rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, sum(heights)), layout="constrained")
        axes = figure.subplots(len(pictures), 1, gridspec_kw={"height_ratios": heights}, squeeze=False)
        for picture, (ax,) in zip(pictures, axes, strict=True):
            picture.draw(ax, plan)
            if titles:
                ax.set_title(picture.title, loc="left", fontweight="bold", color=_TEXT)
    return figure


def as_svg(figure: Figure, text_color: str = "currentColor") -> str:
    """A picture as an SVG element, its text in the colour of the text around it.

    Args:
        figure: The picture.
        text_color: The colour of text and axes.
    """
    buffer = StringIO()
    with rc_context(_STYLE):
        figure.savefig(
            buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    text = buffer.getvalue()
    return text[text.index("<svg") :].replace(_TEXT, text_color)


def _draw_timeline(ax: Axes, plan: PlanRecord) -> None:
    layers = plan.phases[0].layers
    rates = [rate for phase in plan.phases for layer in phase.layers for rate in layer.rates if rate > 0]
    lowest, highest = (min(rates), max(rates)) if rates else (1.0, 1.0)
    norm = LogNorm(lowest, highest) if lowest < highest else LogNorm(lowest / 2, lowest * 2)
    # Without its darkest part, which a dark page would hide. No colour of it looks like the grey of frozen layers.
    colours = ListedColormap(colormaps["viridis"](linspace(0.2, 1.0, 256)))
    end = _end(plan)
    is_large = len(layers) * len(plan.phases) > _MOST_BARS
    for phase in plan.phases:
        stop = end if phase.last_batch is None else phase.last_batch
        for row, layer in enumerate(phase.layers):
            rate = layer.rates[-1] if layer.rates else 0.0
            trains = colours(norm(rate)) if rate > 0 else colours(0.0)
            colour = trains if layer.trainable else _FROZEN
            left, width = phase.first_batch, stop - phase.first_batch
            ax.barh(row, width, left=left, height=0.86, color=colour, linewidth=0, rasterized=is_large)
        if phase.begins_open or phase.first_batch:
            ax.axvline(phase.first_batch, color=_TEXT, linewidth=0.8, linestyle=":" if phase.begins_open else "-")
    ax.set_yticks(range(len(layers)), [_shortened(layer.name) for layer in layers], parse_math=False)
    ax.set_ylim(-0.6, len(layers) - 0.4)
    ax.set_xlim(0, end)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("training batch" + (" (a dotted line is the earliest batch)" if _is_open(plan) else ""))
    if lowest == highest:
        handles = [Patch(color=_FROZEN, label="frozen")]
        if rates:
            handles.append(Patch(color=colours(norm(lowest)), label=f"trains at {lowest:.3g}"))
        _legend(ax, handles=handles)
    else:
        ax.figure.colorbar(ScalarMappable(norm, colours), ax=ax, label="highest learning rate", pad=0.01)
        _legend(ax, handles=[Patch(color=_FROZEN, label="frozen")])


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
    freezing = [(row - 0.2, time.freezing) for row, (_, time) in enumerate(known)]
    cached = [(row + 0.2, time.cached) for row, (_, time) in enumerate(known) if time.cached is not None]
    for bars, colour, label in ((freezing, _FREEZING, "freezing"), (cached, _CACHED, "with FrozenPrefixCache")):
        if bars:
            rows, values = zip(*bars, strict=True)
            drawn = ax.barh(rows, values, height=0.36, color=colour, label=label)
            ax.bar_label(drawn, fmt="%.2f", padding=3, fontsize=8, color=_TEXT)
    ax.axvline(1.0, color=_TEXT, linewidth=0.8, linestyle="--", label="full fine-tuning")
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


def _shortened(name: str) -> str:
    return name if len(name) <= 28 else f"{name[:12]}...{name[-13:]}"
