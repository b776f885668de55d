"""The observers of every run, in the order in which they are told of each moment."""

from __future__ import annotations

from lightning_freeze.callbacks.absent_cache import AbsentCache
from lightning_freeze.callbacks.small_checkpoints import SmallCheckpoints
from lightning_freeze.compatibility.observer import Compatibility
from lightning_freeze.diagnostics.learning_rates.decayed_rate import DecayedRate
from lightning_freeze.diagnostics.learning_rates.one_rate import OneRate
from lightning_freeze.diagnostics.learning_rates.second_schedule import SecondSchedule
from lightning_freeze.diagnostics.learning_rates.unread_lr_scale import UnreadScale
from lightning_freeze.diagnostics.loss_watch import LossWatch
from lightning_freeze.diagnostics.missing_gradients import MissingGradients
from lightning_freeze.diagnostics.new_layers import new_layers, new_weights
from lightning_freeze.diagnostics.untrained_head import UntrainedHead
from lightning_freeze.diagnostics.wasted_backward import WastedBackward
from lightning_freeze.report.printed import PrintedReport
from lightning_freeze.report.rate_log import RateLog
from lightning_freeze.session.observer import Observer
from lightning_freeze.session.session import Session


def make_observers(session: Session) -> list[Observer]:
    """The observers of a run whose members have all joined.

    Args:
        session: The running fit.
    """
    freezing = [member for member in session.members if member.freezes_layers]
    logged = [member.stack for member in session.members if getattr(member, "log_rates", False)]
    stacks = {id(member.stack): member.stack for member in freezing}
    new = new_layers(session.module)
    omitting = [member for member in freezing if not member.save_frozen]
    return [
        Compatibility(session),
        PrintedReport(session),
        *([RateLog(session, logged)] if logged else []),
        *(WastedBackward(m, session) for m in freezing if getattr(m, "warns_of_wasted_backward", True)),
        *(MissingGradients(stack, session) for stack in stacks.values()),
        UnreadScale(session),
        UntrainedHead(session, new),
        OneRate(session, new),
        SecondSchedule(session),
        LossWatch(session),
        AbsentCache(session),
        *([SmallCheckpoints(session, omitting, new_weights(session.module))] if omitting else []),
        *([DecayedRate(session)] if session.schedules else []),
        # A schedule may hold a validation that was due when its checkpoint was saved, so it comes last.
        *session.schedules,
    ]
