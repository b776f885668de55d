"""When each phase of a run begins, as far as it is known before the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_freeze.schedule.phases import Phase
from lightning_freeze.schedule.triggers import Pace


@dataclass(frozen=True)
class Segment:
    """A part of a run in which no schedule changes its phase.

    Attributes:
        phases: Index of the running phase of each schedule.
        first: Training batch at which it begins, counted over the whole run; the earliest one if ``begins_open``.
        last: The batch before which it ends; ``None`` if the run ends first or this is unknown.
        begins_open: Whether it may begin later, because an earlier phase ends on a metric.
        ends_open: Whether it may end later, because it ends on a metric itself or ``begins_open``.
    """

    phases: tuple[int, ...]
    first: int
    last: int | None
    begins_open: bool
    ends_open: bool


def timeline(schedules: Sequence[Sequence[Phase]], pace: Pace, total: int | None) -> list[Segment]:
    """The parts of a run, in order; those that begin only after its end are left out.

    Phases that end on a metric end at the earliest at the batch that stands here. Schedules that take turns after
    such a phase are ordered by these earliest batches.

    Args:
        schedules: The phases of each schedule.
        pace: How fast the run goes.
        total: Number of training batches in the run; ``None`` for a run without end.
    """
    changes: list[tuple[int, int, bool]] = []  # batch, schedule, whether the batch is only the earliest one
    for schedule, phases in enumerate(schedules):
        batch, is_open = 0, False
        for phase in phases[:-1]:
            assert phase.until is not None
            batch = phase.until.earliest(batch, pace)
            is_open = is_open or bool(phase.until.monitors)
            changes.append((batch, schedule, is_open))
    changes.sort(key=lambda change: change[0])
    running = [0] * len(schedules)
    segments = [Segment(tuple(running), 0, None, False, False)]
    for batch, schedule, is_open in changes:
        if total is not None and batch >= total:
            break
        running[schedule] += 1
        last = segments[-1]
        if last.first == batch:
            segments[-1] = Segment(tuple(running), batch, None, last.begins_open or is_open, False)
            continue
        segments[-1] = Segment(last.phases, last.first, batch, last.begins_open, is_open)
        segments.append(Segment(tuple(running), batch, None, is_open, False))
    end = segments[-1]
    segments[-1] = Segment(end.phases, end.first, total, end.begins_open, False)
    return segments
