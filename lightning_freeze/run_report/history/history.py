"""The history of a run, over all of its interruptions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from lightning_freeze.run_report.history.records import (
    Event,
    PerLayer,
    PhaseMemory,
    PhaseRecord,
    Sample,
    Validation,
    Warned,
)
from lightning_freeze.run_report.history.series import ThinnedSeries
from lightning_freeze.schedule.triggers import improves

#: Changes with the form of the state; a state of another form is not read.
VERSION = 1
_MOST_CELLS, _MOST_SAMPLES, _FEWEST_SAMPLES = 8_000, 400, 96
_MOST_PHASES, _MOST_VALIDATIONS, _MOST_EVENTS, _MOST_WARNINGS, _LONGEST_TEXT = 48, 400, 40, 40, 800


class History:
    """What happened in a run.

    Its size is bounded: measurements and validations are thinned out, and phases, events and warnings beyond a number
    are only counted.

    Args:
        layers: Names of the layers, in order.
        sizes: Number of elements in the parameters of each.
        began: Position at which the history begins; greater than 0 if the run had begun without it.

    Attributes:
        samples: What was measured in single batches.
        phases: The parts of the run in which the same layers train.
        later_phases: Changes of phase beyond the limit, which have no record of their own.
        distances: The latest distance of each layer from its starting weights; ``None`` before the first measurement.
        validations: The metrics of the validations.
        best: The validation with the best value of a metric so far, by name.
        modes: ``"min"`` or ``"max"`` for each metric: which values are better.
        events: Interruptions and the end.
        warnings: The warnings.
        other_warnings: How many different ones came after those.
        batches: Training batches so far.
    """

    def __init__(self, layers: Sequence[str], sizes: Sequence[int], began: int = 0) -> None:
        self.layers = list(layers)
        self.sizes = list(sizes)
        self.began = began
        most = max(_FEWEST_SAMPLES, min(_MOST_SAMPLES, _MOST_CELLS // max(1, len(self.layers))))
        self.samples: ThinnedSeries[Sample] = ThinnedSeries(most, lambda sample: sample.starts_phase)
        self.phases: list[PhaseRecord] = []
        self.later_phases = 0
        self.distances: PerLayer | None = None
        self.validations: ThinnedSeries[Validation] = ThinnedSeries(_MOST_VALIDATIONS)
        self.best: dict[str, Validation] = {}
        self.modes: dict[str, str] = {}
        self.events: list[Event] = []
        self.warnings: list[Warned] = []
        self.other_warnings = 0
        self.batches = 0

    @property
    def phase(self) -> PhaseRecord | None:
        """The running phase, or the last one."""
        return self.phases[-1] if self.phases else None

    @property
    def end(self) -> int:
        """Position after the last batch."""
        return self.phases[-1].end if self.phases else self.began

    def begin_phase(self, phase: PhaseRecord) -> bool:
        """Add a phase; returns whether it has a record of its own."""
        if len(self.phases) < _MOST_PHASES:
            phase.cause = phase.cause[:_LONGEST_TEXT]
            self.phases.append(phase)
            return True
        self.later_phases += 1
        last = self.phases[-1]
        last.trainable, last.passes, last.passes_certain = phase.trainable, phase.passes, phase.passes_certain
        return False

    def add_validation(self, validation: Validation, modes: Mapping[str, str]) -> None:
        """Add the metrics of a validation.

        Args:
            validation: The metrics.
            modes: ``"min"`` or ``"max"`` for each: which values are better.
        """
        self.validations.add(validation)
        self.modes.update(modes)
        for name, value in validation.metrics.items():
            best = self.best.get(name)
            if improves(value, None if best is None else best.metrics[name], modes[name]):
                self.best[name] = validation

    def add_event(self, event: Event) -> None:
        """Add an interruption, or the end of the run."""
        event.text = event.text[:_LONGEST_TEXT]
        self.events = [*self.events, event][-_MOST_EVENTS:]

    def add_warning(self, step: int, text: str) -> None:
        """Add a warning, or count it if it is known."""
        text = text[:_LONGEST_TEXT]
        known = next((warned for warned in self.warnings if warned.text == text), None)
        if known is not None:
            known.times += 1
        elif len(self.warnings) < _MOST_WARNINGS:
            self.warnings.append(Warned(step, text))
        else:
            self.other_warnings += 1

    def state_dict(self) -> dict[str, Any]:
        """The history as plain data."""
        return {
            "version": VERSION,
            "layers": self.layers,
            "sizes": self.sizes,
            "began": self.began,
            "samples": _series_state(self.samples),
            "phases": [asdict(phase) for phase in self.phases],
            "later_phases": self.later_phases,
            "distances": self.distances,
            "validations": _series_state(self.validations),
            "best": {name: asdict(validation) for name, validation in self.best.items()},
            "modes": self.modes,
            "events": [asdict(event) for event in self.events],
            "warnings": [asdict(warned) for warned in self.warnings],
            "other_warnings": self.other_warnings,
            "batches": self.batches,
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> History:
        """The inverse of :meth:`state_dict`.

        Raises:
            ValueError: If the state has another form.
        """
        if state.get("version") != VERSION:
            raise ValueError(f"a history of version {state.get('version')!r}: expected {VERSION}")
        history = cls(state["layers"], state["sizes"], state["began"])
        _load_series(history.samples, state["samples"], Sample)
        _load_series(history.validations, state["validations"], Validation)
        history.phases = [_phase(each) for each in state["phases"]]
        history.later_phases = state["later_phases"]
        history.distances = state["distances"]
        history.best = {name: Validation(**each) for name, each in state["best"].items()}
        history.modes = dict(state["modes"])
        history.events = [Event(**each) for each in state["events"]]
        history.warnings = [Warned(**each) for each in state["warnings"]]
        history.other_warnings = state["other_warnings"]
        history.batches = state["batches"]
        return history


def _series_state(series: ThinnedSeries[Any]) -> dict[str, Any]:
    records = [asdict(record) for record in series]
    return {"records": records, "stride": series.stride, "offered": series.offered}


def _load_series(series: ThinnedSeries[Any], state: Mapping[str, Any], kind: type) -> None:
    series.records = [kind(**each) for each in state["records"]]
    series.stride, series.offered = state["stride"], state["offered"]


def _phase(state: Mapping[str, Any]) -> PhaseRecord:
    memory = state["memory"]
    return PhaseRecord(**{**state, "memory": None if memory is None else PhaseMemory(**memory)})
