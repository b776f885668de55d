from __future__ import annotations

from lightning_freeze import EpochTrigger, Phase, PlateauTrigger, StepTrigger
from lightning_freeze.plan.timeline import Segment, timeline
from lightning_freeze.schedule.triggers import Pace

PACE = Pace(batches_per_epoch=10, batches_per_validation=10)


def test_epochs_and_steps_are_known() -> None:
    phases = [Phase("head", EpochTrigger(2)), Phase("1:,head", StepTrigger(5)), Phase("all")]
    assert timeline([phases], PACE, 60) == [
        Segment((0,), 0, 20, False, False),
        Segment((1,), 20, 25, False, False),
        Segment((2,), 25, 60, False, False),
    ]


def test_phases_behind_the_end_are_left_out() -> None:
    phases = [Phase("head", EpochTrigger(2)), Phase("all")]
    assert timeline([phases], PACE, 20) == [Segment((0,), 0, 20, False, False)]


def test_a_plateau_leaves_the_end_open_and_all_that_follows() -> None:
    phases = [Phase("head", PlateauTrigger("val_loss", patience=0)), Phase("1:,head", EpochTrigger(1)), Phase("all")]
    first, second, third = timeline([phases], PACE, 100)
    assert (first.first, first.last, first.begins_open, first.ends_open) == (0, 20, False, True)
    assert (second.first, second.last, second.begins_open, second.ends_open) == (20, 30, True, True)
    assert (third.first, third.last, third.begins_open, third.ends_open) == (30, 100, True, False)


def test_two_schedules_take_turns() -> None:
    one = [Phase("a", EpochTrigger(1)), Phase("b", EpochTrigger(2)), Phase("c")]
    two = [Phase("x", EpochTrigger(3)), Phase("y")]
    segments = timeline([one, two], PACE, 50)
    assert [(s.phases, s.first, s.last) for s in segments] == [
        ((0, 0), 0, 10),
        ((1, 0), 10, 30),
        ((2, 1), 30, 50),
    ]


def test_no_schedule_is_one_phase() -> None:
    assert timeline([], PACE, 30) == [Segment((), 0, 30, False, False)]


def test_a_run_without_end() -> None:
    assert timeline([[Phase("head", EpochTrigger(1)), Phase("all")]], PACE, None)[-1].last is None
