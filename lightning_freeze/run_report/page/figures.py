"""The figures of a page, drawn again only as often as that takes little of the run's time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from time import monotonic

from lightning_freeze.run_report.page.canvas import svg_of
from lightning_freeze.run_report.page.chart import Chart

#: Figures are drawn again after this many times the time that drawing them takes, so about 5% of the run.
_PATIENCE = 20.0


class Figures:
    """The figures that were drawn last.

    Attributes:
        step: The step up to which they show the run; ``None`` if there is none yet.
    """

    def __init__(self) -> None:
        self.step: int | None = None
        self._svgs: dict[str, str] = {}
        self._drawn_at = -math.inf
        self._took = 0.0

    def of(self, charts: Sequence[Chart], step: int, is_last: bool) -> dict[str, str]:
        """An SVG element for each chart, by its key.

        Args:
            charts: The charts.
            step: How far the run is.
            is_last: Whether the page is not written again, so that its figures have to be up to date.
        """
        began = monotonic()
        is_due = is_last or began - self._drawn_at >= _PATIENCE * self._took
        if is_due or any(chart.key not in self._svgs for chart in charts):
            self._svgs = {chart.key: svg_of(chart.width, chart.height, chart.draw) for chart in charts}
            self.step = step
            self._drawn_at = monotonic()
            self._took = self._drawn_at - began
        return self._svgs
