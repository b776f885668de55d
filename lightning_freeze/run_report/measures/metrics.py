"""Which of the logged metrics are those of a validation, and which values are better."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor

from lightning_freeze.schedule.phases import monitors
from lightning_freeze.session.moments import Moments

_MOST = 8
_HIGHER_IS_BETTER = ("acc", "f1", "auc", "auroc", "precision", "recall", "bleu", "rouge", "corr", "r2", "iou", "map")


def watched_metrics(trainer: Trainer, monitor: str | None, mode: str | None) -> dict[str, str]:
    """The metrics that the report or another callback watches, by name, with the mode: ``"min"`` or ``"max"``.

    Args:
        trainer: The running trainer.
        monitor: The metric of the report, which comes first.
        mode: Its mode, if it is given.
    """
    found: dict[str, str] = {} if monitor is None else {monitor: mode or mode_of(monitor)}
    moments = Moments.of(trainer.lightning_module)
    for schedule in moments.session.schedules if moments is not None else ():
        for name, better in monitors(schedule.plan).items():
            found.setdefault(name, better)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        watched, mode = getattr(callback, "monitor", None), getattr(callback, "mode", None)
        if isinstance(watched, str) and watched:
            found.setdefault(watched, mode if mode in ("min", "max") else mode_of(watched))
    return found


def validation_metrics(logged: Mapping[str, Any], watched: Iterable[str]) -> dict[str, float]:
    """The metrics of a validation: those that are watched, then others with ``val`` in their name, eight at most.

    Args:
        logged: All metrics that the module has logged.
        watched: Names of those that come first.
    """
    names = dict.fromkeys([*watched, *("val_loss",), *(name for name in logged if "val" in name.lower())])
    found: dict[str, float] = {}
    for name in names:
        value = logged.get(name)
        if len(found) < _MOST and isinstance(value, (int, float, Tensor)):
            if isinstance(value, Tensor) and value.numel() != 1:
                continue
            found[name] = float(value)
    return found


def mode_of(name: str) -> str:
    """Guess from its name whether a higher value of a metric is better."""
    words = name.lower()
    return "max" if any(word in words for word in _HIGHER_IS_BETTER) and "loss" not in words else "min"
