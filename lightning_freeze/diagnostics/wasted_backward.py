"""Whether freezing saves time: warns once in a fit of frozen blocks that backward still runs through."""

from __future__ import annotations

from lightning_freeze.compatibility.compile import is_compiled
from lightning_freeze.diagnostics.avoidable_backward import AvoidableBackward
from lightning_freeze.diagnostics.backward_watch import BackwardWatch
from lightning_freeze.diagnostics.wasted_backward_message import WastedBackwardMessage
from lightning_freeze.layers.analysis.backward_extent import Leak
from lightning_freeze.run_warnings.record import warn_in_run
from lightning_freeze.session.observer import Observer
from lightning_freeze.session.session import Member, Session


class WastedBackward(Observer):
    """Checks later phases by the structure of the module, and the first batch of each phase by what requires grad.

    Args:
        member: The callback that freezes.
        session: The running fit.
    """

    def __init__(self, member: Member, session: Session) -> None:
        self._member = member
        self._session = session
        self._schedule = member.schedule
        self._watch: BackwardWatch | None = None
        self._seen_phase = -1
        self._is_done = False
        session.at_close(self._stop_watching)

    @property
    def _phase(self) -> int:
        return self._schedule.phase if self._schedule is not None else 0

    @property
    def _number(self) -> int | None:
        return None if self._schedule is None else self._phase

    def start_training(self) -> None:
        """Warn of the running phase and later ones, if the structure alone proves the leak."""
        # Not earlier: until now, a schedule may still drop phases that other callbacks make idle.
        self._avoidable = AvoidableBackward(self._member, self._session)
        self._message = WastedBackwardMessage(self._member, self._session)
        if self._schedule is None or not self._avoidable.covers_all():
            return
        found = {number: self._avoidable.in_phase(number) for number in range(self._phase, len(self._schedule.plan))}
        wrong = {number: leak for number, leak in found.items() if leak is not None}
        if wrong:
            first, *others = wrong
            self._warn(self._message.text(wrong[first], first) + self._message.more_phases(others))

    def start_batch(self) -> None:
        """Observe the forward pass if the trainable layers have changed since the last batch."""
        if self._is_done or self._phase == self._seen_phase:
            return
        self._stop_watching()
        self._seen_phase = self._phase
        expected = self._avoidable.now(self._number)
        if not is_compiled(self._session.module):  # hooks would break its graphs
            self._watch = BackwardWatch(self._member.stack, lambda name: self._confirm(name, expected))
        elif expected is not None:
            self._warn(self._message.text(expected, self._number))

    def before_backward(self) -> None:
        """Warn of leaks that the structure does not show."""
        watch, self._watch = self._watch, None
        if watch is None:
            return
        leak = self._avoidable.among(watch.close(), self._number)
        if leak is not None and not self._is_done:
            self._warn(self._message.text(leak, self._number))

    def _confirm(self, name: str, expected: Leak | None) -> None:
        # Before the backward pass, because it may run out of memory if it runs further than it should.
        if expected is not None and name in expected.layers and not self._is_done:
            self._warn(self._message.text(expected, self._number))

    def _stop_watching(self) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def _warn(self, message: str) -> None:
        self._is_done = True
        if self._session.is_first("wasted backward"):
            warn_in_run(self._session.trainer, message)
