"""The file of a report: when it is written, and what happens if it cannot be."""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic
from typing import TYPE_CHECKING

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lightning_freeze.run_report.facts import RunFacts
from lightning_freeze.run_report.history.history import History
from lightning_freeze.run_report.plan_file import PlannedNumbers
from lightning_freeze.run_report.writing import path_in, write_atomically

if TYPE_CHECKING:  # needs matplotlib
    from lightning_freeze.run_report.page.figures import Figures

_OLD_SECONDS = 60.0


class ReportFile:
    """Writes the page of a run again and again.

    Args:
        folder: Where it stands.
        name: Its name.
        plan: What to compare the run with, if anything.

    Attributes:
        path: The file.
        is_written: Whether it has been written.
    """

    def __init__(self, folder: str, name: str, plan: Sequence[PlannedNumbers] | None) -> None:
        self.path = path_in(folder, name)
        self.is_written = False
        self._plan = plan
        self._figures: Figures | None = None
        self._is_warned = False
        self._written_at = monotonic()

    def is_old(self) -> bool:
        """Whether more than a minute has passed since the page was written, or the run began."""
        return monotonic() - self._written_at > _OLD_SECONDS

    def write(self, history: History, facts: RunFacts, is_last: bool) -> None:
        """Write the page; if that fails, warn once, and try again the next time.

        Args:
            history: What happened.
            facts: What else there is to say about the run.
            is_last: Whether the run is over.
        """
        from lightning_freeze.run_report.page.figures import Figures
        from lightning_freeze.run_report.page.page import report_page

        self._figures = self._figures or Figures()
        self._written_at = monotonic()
        try:
            write_atomically(self.path, report_page(history, facts, self._plan, self._figures, is_last))
            self.is_written = True
        except Exception as error:
            if not self._is_warned:
                self._is_warned = True
                rank_zero_warn(
                    f"FreezeReport cannot write {self.path} ({type(error).__name__}: {error}). It tries again at the "
                    f"end of the next epoch, and the run goes on."
                )
