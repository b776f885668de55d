"""A history as the charts look at it: which layers are shown, the steps on the axis, and how numbers are worded."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence

from lightning_freeze.layers.wording import spans
from lightning_freeze.run_report.facts import RunFacts
from lightning_freeze.run_report.history.history import History
from lightning_freeze.run_report.history.records import PhaseRecord, Sample
from lightning_freeze.run_report.plan_file import PlannedNumbers, matched

_MOST_LAYERS = 160
_LONGEST_NAME = 80


class View:
    """What the charts look at.

    Args:
        history: The history.
        facts: What else is known of the run.
        plan: The phases of a plan, if there is one.

    Attributes:
        history: The history.
        facts: What else is known of the run.
        shown: Indices of the layers that are shown.
        names: Their names.
        begin: The first step on the axis.
        end: The last one.
        planned: For each phase, what the plan says of it.
        metric: The metric that is shown first; ``None`` without a validation.
    """

    def __init__(self, history: History, facts: RunFacts, plan: Sequence[PlannedNumbers] | None = None) -> None:
        self.history = history
        self.facts = facts
        count = len(history.layers)
        half = _MOST_LAYERS // 2
        self.shown = list(range(count)) if count <= _MOST_LAYERS else [*range(half), *range(count - half, count)]
        self.names = [_short(history.layers[index]) for index in self.shown]
        first = history.samples.records[0].step if len(history.samples) else history.began
        self.begin = min(first, *(phase.step for phase in history.phases)) if history.phases else first
        self.end = max(history.end, self.begin + 1)
        self.planned = [None] * len(history.phases) if plan is None else matched(history.phases, plan)
        self.metric = self._metric()

    def _metric(self) -> str | None:
        logged = dict.fromkeys(name for validation in self.history.validations for name in validation.metrics)
        wanted = [*self.facts.monitor, "val_loss", *(name for name in logged if "loss" in name), *logged]
        return next((name for name in wanted if name in logged), None)

    @property
    def samples(self) -> list[Sample]:
        """What was measured."""
        return self.history.samples.records

    @property
    def phases(self) -> list[PhaseRecord]:
        """The phases."""
        return self.history.phases

    def curve(self, name: str) -> list[tuple[int, float]]:
        """Step and value of a metric, where the value is finite."""
        found = [(each.step, each.metrics[name]) for each in self.history.validations if name in each.metrics]
        return [(step, value) for step, value in found if math.isfinite(value)]

    def best_in_phase(self, number: int) -> float | None:
        """The best value of the metric that is shown first among the validations in a phase."""
        values = [
            each.metrics[self.metric]
            for each in self.history.validations
            if self.metric in each.metrics and each.phase == number and math.isfinite(each.metrics[self.metric])
        ]
        better = max if self.metric is not None and self.history.modes.get(self.metric) == "max" else min
        return better(values) if values else None

    def grid(self, values: Callable[[Sample], Sequence[float | None]], columns: int) -> list[list[float | None]]:
        """Values by layer and step: one row for each layer that is shown, with equal distances between the steps.

        Args:
            values: The values of all layers in a sample.
            columns: Number of steps.
        """
        steps = [sample.step for sample in self.samples]
        found: list[Sequence[float | None]] = []
        for column in range(columns):
            step = self.begin + (column + 0.5) / columns * (self.end - self.begin)
            index = bisect_right(steps, step) - 1
            found.append(values(self.samples[index]) if index >= 0 else [None] * len(self.history.layers))
        return [[column[layer] for column in found] for layer in self.shown]

    def some_samples(self, most: int = 10) -> list[Sample]:
        """Samples that are spread evenly over the run, the first and the last one among them."""
        count = len(self.samples)
        if count <= most:
            return self.samples
        return [self.samples[round(i * (count - 1) / (most - 1))] for i in range(most)]

    def trains(self, phase: PhaseRecord) -> str:
        """The layers that train in a phase, in words."""
        names = [_short(name) for name in self.history.layers]
        found = [name for name, trainable in zip(names, phase.trainable, strict=True) if trainable]
        return spans(found, names) or "nothing"


def number(value: float | None, digits: int = 3) -> str:
    """A number for a table; ``-`` where there is none."""
    if value is None:
        return "-"
    return f"{value:.{digits}g}" if math.isfinite(value) else str(value)


def seconds_text(seconds: float | None) -> str:
    """A time for reading: ``12 ms``, ``1.3 s``, ``4 min 10 s``, ``2 h 5 min``."""
    if seconds is None:
        return "-"
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 3]}..."
