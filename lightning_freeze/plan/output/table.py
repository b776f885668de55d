"""A plan as text: one row for each phase."""

from __future__ import annotations

from rich import box
from rich.table import Table

from lightning_freeze.cache.store.sizes import show_size
from lightning_freeze.layers.wording import count, render, spans
from lightning_freeze.plan.records import PlannedPhase, PlanRecord

_WIDTH = 120


def plan_text(plan: PlanRecord) -> str:
    """The phases of a plan as a table, followed by the totals and the notes.

    Args:
        plan: The plan.
    """
    table = Table(box=box.SIMPLE_HEAD, title="Plan", title_justify="left", title_style="bold")
    table.add_column("phase", justify="right")
    table.add_column("batches", no_wrap=True)
    table.add_column("trains", overflow="fold")
    table.add_column("parameters", justify="right", no_wrap=True)
    table.add_column("learning rate", justify="right")
    table.add_column("memory", justify="right", no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    table.add_column("with cache", justify="right", no_wrap=True)
    for phase in plan.phases:
        table.add_row(*_cells(plan, phase))
    return "\n".join([render(table, _WIDTH), "", *summary_lines(plan), *(f"Note: {note}" for note in plan.notes)])


def _cells(plan: PlanRecord, phase: PlannedPhase) -> list[str]:
    size = "?" if phase.memory is None else show_size(phase.memory.total)
    if not plan.fits(phase):
        size += " (too large)"
    return [
        str(phase.number),
        batches_text(phase),
        spans(phase.trains, [layer.name for layer in phase.layers]),
        count(phase.trainable),
        rates_text(phase),
        size,
        "?" if phase.time is None else f"{phase.time.freezing:.2f}",
        "-" if phase.time is None or phase.time.cached is None else f"{phase.time.cached:.2f}",
    ]


def batches_text(phase: PlannedPhase) -> str:
    """The batches of a phase; ``>=`` marks the earliest possible ones."""
    begin = f"{'>= ' if phase.begins_open else ''}{phase.first_batch}"
    if phase.last_batch is None:
        return f"{begin} ..."
    return f"{begin} ... {'>= ' if phase.ends_open else ''}{phase.last_batch - 1}"


def rates_text(phase: PlannedPhase) -> str:
    """The lowest and the highest learning rate of a phase."""
    rates = sorted({rate for layer in phase.layers for rate in layer.rates})
    if not rates:
        return "-"
    return f"{rates[0]:.3g}" if rates[0] == rates[-1] else f"{rates[0]:.3g} to {rates[-1]:.3g}"


def summary_lines(plan: PlanRecord) -> list[str]:
    """Sentences about the run as a whole."""
    shapes = ", ".join(f"{name}: {' x '.join(map(str, shape)) or 'scalar'}" for name, shape in plan.batch.items())
    lines = [
        "The learning rate is the highest in the phase. Memory is what a training step keeps, time how long it takes "
        "relative to full fine-tuning.",
        f"Planned with one batch: {shapes or 'without tensors'}.",
    ]
    total, cached = plan.total_time(), plan.total_time(cached=True)
    if total is not None and cached is not None:
        line = f"The whole run takes {total:.2f} of the time of full fine-tuning"
        if cached < total:
            line += f", {cached:.2f} with FrozenPrefixCache ({show_size(plan.cache_bytes)} for the training samples)"
        if any(phase.ends_open for phase in plan.phases):
            line += ", if each phase ends as early as it can"
        lines.append(f"{line}.")
    peak = plan.peak()
    if peak is not None and plan.full is not None:
        lines.append(f"It keeps at most {show_size(peak.total)}; full fine-tuning keeps {show_size(plan.full.total)}.")
    if plan.memory_limit is not None:
        lines.append(_what_fits(plan, plan.memory_limit))
    if any(phase.ends_open for phase in plan.phases):
        lines.append("A phase that waits for a metric may end later than the batch that stands here (>=).")
    return lines


def _what_fits(plan: PlanRecord, limit: int) -> str:
    numbers = [str(phase.number) for phase in plan.phases]
    large = [str(phase.number) for phase in plan.phases if not plan.fits(phase)]
    if plan.peak() is None:
        return f"Whether it fits in {show_size(limit)} is not known."
    if not large:
        return f"It fits in {show_size(limit)}."
    which = f"Phase {large[0]} does" if len(large) == 1 else f"Phases {spans(large, numbers)} do"
    if plan.fitting is None:
        return f"{which} not fit in {show_size(limit)}, and neither does training the last layer alone."
    need = show_size(plan.fitting.memory.total)
    return f'{which} not fit in {show_size(limit)}. LayerFreezing("{plan.fitting.layers}") does, with {need}.'
