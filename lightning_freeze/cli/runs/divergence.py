"""Whether a run has diverged: a loss or a weight that is not finite at its end."""

from __future__ import annotations

import math
import os

import torch
from lightning.pytorch import Trainer


class DivergedError(Exception):
    """Training has ended with a loss or weights that are not finite. The set-up was valid, but the run is useless."""


def check_finite(trainer: Trainer) -> None:
    """Check the last losses and the weights.

    Args:
        trainer: After ``fit``.

    Raises:
        DivergedError: If one of them is not finite. The message names a checkpoint that was saved before, if there is
            one with a finite score.
    """
    losses = {name: float(value) for name, value in trainer.callback_metrics.items() if name.endswith("loss")}
    wrong = next((f"{name} is {value}" for name, value in losses.items() if not math.isfinite(value)), None)
    if wrong is None:
        parameters = trainer.lightning_module.named_parameters()
        wrong = next((f"{name} holds values that are not finite" for name, p in parameters if not _is_finite(p)), None)
    if wrong is None:
        return
    raise DivergedError(
        f"The run has diverged: {wrong} at its end.{_saved_before(trainer)} A lower learning rate, gradient clipping "
        "(trainer.gradient_clip_val) or trainer.precision=32-true may help."
    )


def _is_finite(parameter: torch.Tensor) -> bool:
    return not parameter.is_floating_point() or bool(torch.isfinite(parameter).all())


def _saved_before(trainer: Trainer) -> str:
    checkpoint = trainer.checkpoint_callback
    path, score = getattr(checkpoint, "best_model_path", ""), getattr(checkpoint, "best_model_score", None)
    if not path or score is None or not math.isfinite(float(score)):
        return " No checkpoint of it is of use."
    monitor = getattr(checkpoint, "monitor", "score")
    return f" {os.path.relpath(path)} was saved before that, with {monitor} {float(score):.3f}."
