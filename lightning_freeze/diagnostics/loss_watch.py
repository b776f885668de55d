"""Watches the losses of a run, and warns of too much freezing, or of overfitting since layers were unfrozen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor

from lightning_freeze.diagnostics.curves import LossRecord, overfits_since_unfreeze, plateaus_low
from lightning_freeze.run_warnings.record import warn_in_run
from lightning_freeze.session.observer import Observer, PhaseChange
from lightning_freeze.session.session import Session

#: With fewer validation samples the loss moves by chance, and nothing is concluded from it.
FEWEST_SAMPLES = 100

#: Names under which modules log the validation loss, with ``/`` and ``-`` as ``_``.
_NAMES = ("val_loss", "valid_loss", "validation_loss", "loss_val")


def validation_loss(logged: Mapping[str, Any]) -> tuple[str, float] | None:
    """The name and the value of the logged validation loss; ``None`` if there is none, or it is not finite.

    Args:
        logged: All logged metrics.
    """
    for name, value in logged.items():
        if name.lower().replace("/", "_").replace("-", "_") in _NAMES:
            number = float(value)
            return (name, number) if math.isfinite(number) else None
    return None


def validation_size(trainer: Trainer) -> float:
    """The number of validation samples; of loaders that do not tell their batch size, the number of batches.

    Args:
        trainer: A trainer that has validated.
    """
    loaders = trainer.val_dataloaders
    flat = loaders if isinstance(loaders, (list, tuple)) else [loaders]
    return sum(
        count * (getattr(loader, "batch_size", None) or 1)
        for loader, count in zip(flat, trainer.num_val_batches, strict=False)
    )


class LossWatch(Observer):
    """Records the mean training loss and the validation loss of each epoch, under automatic optimization.

    Nothing is carried over to a resumed run: it judges what it sees itself.

    Args:
        session: The running fit.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._schedule = session.schedules[0] if session.schedules else None
        self._records: list[LossRecord] = []
        self._epoch = -1
        self._sum: Tensor | float = 0.0
        self._count = 0
        self._first: float | None = None
        self._is_over = True  # until training begins; finders try rates out before

    def start_training(self) -> None:  # noqa: D102
        self._is_over = not self._session.module.automatic_optimization or len(self._session.schedules) > 1
        self._is_resumed = self._session.trainer.global_step > 0

    def see_loss(self, loss: Tensor) -> None:  # noqa: D102
        if not self._is_over:
            loss = loss.detach() * self._session.trainer.accumulate_grad_batches  # Lightning has divided by it
            if self._first is None:
                self._first = float(loss)
            self._sum, self._count = self._sum + loss, self._count + 1

    def end_validation(self) -> None:  # noqa: D102
        trainer = self._session.trainer
        if self._is_over or trainer.sanity_checking or not self._count:
            return
        if validation_size(trainer) < FEWEST_SAMPLES:
            self._is_over = True
            return
        train, self._sum, self._count = float(self._sum) / self._count, 0.0, 0
        found = validation_loss(trainer.callback_metrics)
        if found is None or not math.isfinite(train):
            return
        name, value = found
        if trainer.current_epoch == self._epoch and self._records:
            self._records.pop()
        self._epoch = trainer.current_epoch
        self._records.append(LossRecord(self._phase, train, value))
        self._judge(name)

    def change_phase(self, change: PhaseChange) -> None:  # noqa: D102
        if change.restored is not None:  # the weights are other ones, and so are the losses
            self._records.clear()

    @property
    def _phase(self) -> int:
        return 0 if self._schedule is None else self._schedule.phase

    def _judge(self, name: str) -> None:
        trainer, last = self._session.trainer, self._records[-1]
        phases = 1 if self._schedule is None else len(self._schedule.plan)
        phase = overfits_since_unfreeze(self._records)
        if phase is not None and self._session.is_first("overfits"):
            before = self._records[-4]
            warn_in_run(
                trainer,
                f"Since phase {phase + 1} of {phases} has unfrozen more layers, the training loss has fallen from "
                f"{before.train:.4g} to {last.train:.4g}, but {name} has risen from {before.val:.4g} to "
                f"{last.val:.4g}: the model overfits. Lower the rate of the phase (Phase(lr=...), DiscriminativeLR), "
                f"unfreeze fewer layers, or stop on {name} (EarlyStopping, ModelCheckpoint).",
            )
        if self._is_resumed or self._first is None or self._phase < phases - 1:
            return
        share = self._frozen_share()
        records = [record for record in self._records if record.phase == self._phase]
        if plateaus_low(records, self._first, share) and self._session.is_first("plateau"):
            warn_in_run(
                trainer,
                f"{name} has not improved for {len(records) - len(records) // 3} epochs and is still {last.val:.4g} "
                f"(the first training loss was {self._first:.4g}, the present one is {last.train:.4g}), with "
                f"{share:.0%} of the blocks' parameters frozen: too many layers may be frozen. Unfreeze more of them, "
                f"from the top down, or raise the learning rate.",
            )

    def _frozen_share(self) -> float:
        parameters = [p for layer in self._session.stack.blocks for p in layer.parameters()]
        total = sum(p.numel() for p in parameters)
        return sum(p.numel() for p in parameters if not p.requires_grad) / total if total else 0.0
