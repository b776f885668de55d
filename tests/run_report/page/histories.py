"""Histories as runs of any size leave them, made without a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lightning_freeze.run_report.facts import RunFacts
from lightning_freeze.run_report.history.history import History
from lightning_freeze.run_report.history.records import Event, PhaseMemory, PhaseRecord, Sample, Validation


def facts(**options: Any) -> RunFacts:
    """The facts of a run."""
    given: dict[str, Any] = {
        "module": "Classifier",
        "optimizers": ("AdamW",),
        "epoch": 3,
        "epochs": 3,
        "processes": 1,
        "written": "2030-01-01 12:00 UTC",
        "hit_rate": 0.75,
        "cache": ("All layers: skip: all 8 samples were found",),
    }
    return RunFacts(**{**given, **options})


def history(layers: Sequence[str], phases: int, steps: int = 600, every: int = 5) -> History:
    """A run that unfreezes from the top down.

    Args:
        layers: Names of the layers.
        phases: Number of phases.
        steps: Steps of the run.
        every: Steps from one measurement to the next.
    """
    count = len(layers)
    found = History(layers, [1000] * count)
    per_phase = steps / phases
    for step in range(0, steps, every):
        number = int(step / per_phase)
        trains = [index >= count - 1 - number for index in range(count)]
        is_new = number >= len(found.phases) + found.later_phases
        if is_new:
            memory = PhaseMemory(count * 4000, sum(trains) * 4000, sum(trains) * 8000, count * 4000, count * 8000)
            cause = f"{layers[-1]} had not improved for 2 validations" if number else "the run began"
            trainable = [1000 * each for each in trains]
            found.begin_phase(PhaseRecord(step, number, cause, trainable, step + 1, memory=memory))
        phase = found.phases[-1]
        phase.end, phase.batches, phase.timed = step + every, phase.batches + every, phase.timed + every
        phase.seconds += every * (0.1 + 0.01 * sum(trains))
        phase.lowest = trains.index(True)
        rate = 1e-3 * (1 - step / steps)
        norms = [0.1 * (1 + math.sin(step + i)) + 0.01 if t else None for i, t in enumerate(trains)]
        distances = [0.001 * step / (1 + i) if t else 0.0 for i, t in enumerate(trains)]
        rates = [rate * 0.9 ** (count - i) if t else None for i, t in enumerate(trains)]
        relative = [None if norm is None else norm / 30 for norm in norms]
        found.samples.add(Sample(step, number, rates, norms, relative, distances, 1 / (1 + step), 0.5, is_new))
        found.distances = distances
        found.batches += every
        if step % 20 == 0 and step:
            validation = Validation(step, number, len(found.phases), {"val_loss": 1.5 / (1 + step / 100)})
            found.add_validation(validation, {"val_loss": "min"})
    found.add_event(Event(steps, "training ended as planned"))
    return found
