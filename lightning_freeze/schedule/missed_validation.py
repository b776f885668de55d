"""The validation that Lightning leaves out on resume, and how it is made up for.

A checkpoint saved at the end of a training batch, such as ``ModelCheckpoint(every_n_train_steps=...)`` makes, does not
include the validation that was due right after that batch, and Lightning does not repeat it when the run is resumed: it
continues with the next batch. Everything that counts validations (a plateau, the best weights) would then see one fewer
than in an uninterrupted run. So a schedule records whether a validation is due, and runs it first after a resume.
"""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch import Trainer


def validation_is_due(trainer: Trainer, batch_idx: int) -> bool:
    """Whether Lightning will validate right after this training batch, as far as the batch count decides.

    Call it in ``on_train_batch_end``. Validations by the clock (``val_check_interval`` as a duration), and those that
    Lightning adds when a run is stopped, cannot be predicted.

    Args:
        trainer: The running trainer.
        batch_idx: Number of the batch in its epoch, from 0.
    """
    every = trainer.check_val_every_n_epoch
    if not trainer.enable_validation or (every is not None and (trainer.current_epoch + 1) % every != 0):
        return False
    batches = trainer.val_check_batch
    if batches is None:
        return False
    if math.isinf(batches):  # a data set without a length
        return trainer.is_last_batch
    count = trainer.fit_loop.total_batch_idx if every is None else batch_idx
    return (count + 1) % int(batches) == 0


def catch_up(trainer: Trainer, epoch: int) -> None:
    """Run the validation that was due when the checkpoint was saved; call it in ``on_train_start``.

    It runs like any other validation: all callbacks, loggers and metrics see it.

    Args:
        trainer: The running trainer, resumed.
        epoch: The epoch in which it was due; after the last batch of an epoch, Lightning resumes in the next.
    """
    progress: Any = trainer.fit_loop.epoch_progress.current
    completed, processed = progress.completed, progress.processed
    progress.completed = progress.processed = epoch
    loop = trainer.fit_loop.epoch_loop.val_loop
    loop.restarting = False
    loop.reset_restart_stage()  # an interrupted validation starts from the beginning
    trainer.validating = True
    try:
        loop.run()
        loop.reset()  # otherwise the training loop takes it for the last validation of the epoch, and ends the epoch
    finally:
        trainer.training = True
        progress.completed, progress.processed = completed, processed
