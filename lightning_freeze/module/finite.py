"""Losses and metrics that are NaN or infinite: reported once, and never ranked as good."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric


class NanAware(Metric):
    """A metric of predictions that is NaN once a prediction is NaN.

    The index of the largest logit exists even if all logits are NaN, so an accuracy of such a model looks like that of
    a constant guess, and a checkpoint could be chosen by it. ``ModelCheckpoint`` and ``EarlyStopping`` rank NaN last.

    Args:
        metric: The metric of predictions and targets.
    """

    full_state_update = False
    not_a_number: Tensor

    def __init__(self, metric: Metric) -> None:
        super().__init__()
        self.metric = metric
        self.add_state("not_a_number", torch.tensor(0.0), dist_reduce_fx="max")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add a batch.

        Args:
            preds: Logits or probabilities.
            target: As the metric takes it.
        """
        self.not_a_number = torch.maximum(self.not_a_number, preds.isnan().any().to(self.not_a_number.dtype))
        self.metric.update(preds, target)

    def compute(self) -> Tensor:
        """Return the metric's value, or NaN."""
        value: Tensor = self.metric.compute()
        return torch.where(self.not_a_number > 0, torch.full_like(value, torch.nan), value)

    def reset(self) -> None:
        """Forget all batches."""
        super().reset()
        self.metric.reset()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Not supported: call ``update`` and ``compute``."""
        raise NotImplementedError("NanAware has no value for a single batch: call update, then compute.")


class LossWatch:
    """Records the first step with a loss that was not finite, without waiting for the accelerator at each step."""

    def __init__(self) -> None:
        self._first: Tensor | None = None

    def update(self, loss: Tensor, step: int) -> None:
        """Look at the loss of one batch.

        Args:
            loss: A scalar.
            step: The optimizer step that it is for.
        """
        loss = loss.detach()
        if self._first is None or self._first.device != loss.device:
            self._first = torch.full((), -1, dtype=torch.long, device=loss.device)
        here = torch.full_like(self._first, step)
        self._first = torch.where((self._first < 0) & ~torch.isfinite(loss), here, self._first)

    def first_step(self) -> int | None:
        """Return the first step whose loss was not finite, or None. Waits for the accelerator."""
        step = -1 if self._first is None else int(self._first)
        return None if step < 0 else step


def describe_divergence(module: nn.Module, step: int, precision: str, rates: list[float]) -> str:
    """Describe that a loss is not finite, and the likely causes.

    Args:
        module: The module that is trained.
        step: The first step whose loss was not finite.
        precision: The Trainer's precision.
        rates: The learning rates of the optimizer's groups, before a schedule.
    """
    half = any(p.dtype is torch.float16 for p in module.parameters() if p.requires_grad)
    causes = []
    if half or precision.startswith("16"):
        where = "weights in float16" if half or precision == "16-true" else "float16 (precision='16-mixed')"
        causes.append(f"{where} (bfloat16 or 32 bits do not overflow)")
    causes.append(f"a learning rate that is too high ({max(rates):.1e})" if rates else "the learning rate")
    causes.append("values in the data that are not finite")
    # Sharded parameters are left out: reading them is a collective operation, and not all processes get here.
    whole = [p for p in module.parameters() if p.is_floating_point() and not hasattr(p, "full_tensor")]
    broken = any(not bool(torch.isfinite(p).all()) for p in whole)
    state = " The weights are no longer finite, so that the run cannot recover." if broken else ""
    return f"The training loss is NaN or infinite at step {step}.{state} Likely causes: {'; '.join(causes)}."
