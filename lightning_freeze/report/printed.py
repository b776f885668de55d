"""What a run prints about itself: tables of layers at both ends, and one line for each change of phase."""

from __future__ import annotations

from lightning_freeze.layers.analysis.randomness import active_random_sources, random_source_lines
from lightning_freeze.layers.table import sharing
from lightning_freeze.report.layer_rows import layer_rows
from lightning_freeze.report.layer_table import layer_table
from lightning_freeze.report.phase_line import phase_line
from lightning_freeze.schedule.triggers import Clock
from lightning_freeze.session.observer import Observer, PhaseChange
from lightning_freeze.session.session import Session

#: Shared weights are those of the architecture: one line in each process, also where many models of it are fitted.
_PRINTED: set[str] = set()


class PrintedReport(Observer):
    """Prints, once for all callbacks of a run, if any of them is verbose.

    Args:
        session: The running fit.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._is_verbose = any(member.verbose for member in session.members)

    def start_training(self) -> None:  # noqa: D102
        session = self._session
        if not self._is_verbose:
            return
        shared = [line for line in sharing(session.stack) if line not in _PRINTED]
        _PRINTED.update(shared)
        session.module.print("\n".join([layer_table(layer_rows(session)), *shared]))
        freezing = next((member for member in session.members if member.freezes_layers and member.verbose), None)
        if freezing is not None:
            for line in random_source_lines(freezing.stack, active_random_sources(freezing.stack)):
                session.module.print(f"{line[:1].upper()}{line[1:]}.")

    def change_phase(self, change: PhaseChange) -> None:  # noqa: D102
        if change.verbose:
            trainer, module = self._session.trainer, self._session.module
            module.print(phase_line(change, module, Clock(trainer.current_epoch, trainer.global_step)))

    def end_training(self) -> None:  # noqa: D102
        if self._is_verbose:
            self._session.module.print(layer_table(layer_rows(self._session), ended=True))
