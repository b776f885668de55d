"""The scalars that go to the loggers of a run; ``docs/report.md`` lists their names."""

from __future__ import annotations

from lightning_freeze.run_report.history.history import History
from lightning_freeze.run_report.history.records import PerLayer, Sample


def scalars(history: History, sample: Sample, batch_seconds: float | None) -> dict[str, float]:
    """The scalars of one measurement.

    Args:
        history: The history, in which the sample belongs to the running phase.
        sample: The measurement.
        batch_seconds: Mean time of a training batch since the last measurement, if any was timed.
    """
    phase = history.phase
    assert phase is not None
    found: dict[str, float | None] = {
        "freeze/phase": float(len(history.phases) + history.later_phases),
        "freeze/trainable_parameters": float(sum(phase.trainable)),
        "freeze/batch_seconds": batch_seconds,
        "freeze/cache_hit_rate": sample.hit_rate,
    }
    if phase.memory is not None:
        found["freeze/gradient_bytes"] = float(phase.memory.gradients)
        found["freeze/optimizer_bytes"] = float(phase.memory.optimizer)
        found["freeze/allocated_bytes"] = None if phase.memory.allocated is None else float(phase.memory.allocated)
    found |= _by_layer("freeze/lr", history, sample.rates)
    found |= _by_layer("freeze/grad_norm", history, sample.gradients)
    found |= _by_layer("freeze/relative_grad_norm", history, sample.relative_gradients)
    found |= _by_layer("freeze/distance", history, sample.distances)
    return {name: value for name, value in found.items() if value is not None}


def _by_layer(name: str, history: History, values: PerLayer) -> dict[str, float | None]:
    return {f"{name}/{layer}": value for layer, value in zip(history.layers, values, strict=True)}
