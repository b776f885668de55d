"""A run without FrozenPrefixCache in which it would save more than half of the time of a step."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset, default_collate

from lightning_freeze.cache.checks.eligibility import shards_weights
from lightning_freeze.cache.identity.cached_towers import find_towers
from lightning_freeze.compatibility.checks import callbacks_of
from lightning_freeze.compatibility.compile import is_compiled
from lightning_freeze.data.batching import BatchedExamples
from lightning_freeze.diagnostics.cache_gain import frozen_share, is_worth_a_cache, saving
from lightning_freeze.layers.analysis.randomness import active_random_sources
from lightning_freeze.namespaces import either, overrides
from lightning_freeze.run_warnings.record import warn_in_run
from lightning_freeze.schedule.checks import pace_of
from lightning_freeze.session.observer import Observer
from lightning_freeze.session.session import Session

_TRANSFERS = ("on_before_batch_transfer", "on_after_batch_transfer")


def repeats_inputs(loader: object) -> bool:
    """Whether the samples of a data loader are known to be the same in each epoch.

    That is known of stored tensors and of the examples of this package; any other data set may augment its samples.

    Args:
        loader: What ``train_dataloader`` has returned.
    """
    if not isinstance(loader, DataLoader):
        return False
    dataset = loader.dataset
    return isinstance(dataset, BatchedExamples) or (loader.collate_fn is default_collate and _is_stored(dataset))


def _is_stored(dataset: Dataset[Any]) -> bool:
    if isinstance(dataset, ConcatDataset):
        return all(_is_stored(part) for part in dataset.datasets)
    return _is_stored(dataset.dataset) if isinstance(dataset, Subset) else type(dataset) is TensorDataset


class AbsentCache(Observer):
    """Estimates, in the first batch of each phase, what the cache would save; warns once.

    Args:
        session: The running fit.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._seen_phase = -1
        # By name: the class itself is built on the observers.
        names = {cls.__name__ for callback in callbacks_of(session) for cls in type(callback).__mro__}
        self._is_over = "FrozenPrefixCache" in names or len(session.schedules) > 1

    def start_training(self) -> None:  # noqa: D102
        self._is_over = self._is_over or self._session.trainer.global_step > 0 or not self._inputs_repeat()

    def start_batch(self) -> None:  # noqa: D102
        session = self._session
        phase = session.schedules[0].phase if session.schedules else 0
        if self._is_over or not session.is_running or phase == self._seen_phase:
            return
        self._seen_phase = phase
        frozen = frozen_share(session.stack)
        if is_worth_a_cache(frozen, self._epochs_left(phase)) and self._is_possible():
            self._is_over = True
            blocks = "block is" if frozen.blocks == 1 else f"{frozen.blocks} blocks are"
            warn_in_run(
                session.trainer,
                f"The first {blocks} frozen, {frozen.share:.0%} of the model's work, and computed again in each epoch: "
                f"FrozenPrefixCache() beside this schedule would save about {saving(frozen.share):.0%} of the time of "
                f"a step from the second epoch on.",
            )

    def _epochs_left(self, phase: int) -> float:
        """For how many epochs from now on the frozen layers stay frozen, at least."""
        trainer = self._session.trainer
        per_epoch, total = trainer.num_training_batches, trainer.estimated_stepping_batches
        if math.isinf(per_epoch) or not per_epoch or math.isinf(total) or total < 0:
            return 0
        steps_per_epoch = math.ceil(per_epoch / trainer.accumulate_grad_batches)
        left = total / steps_per_epoch - trainer.current_epoch
        plan = self._session.schedules[0].plan if self._session.schedules else []
        until = plan[phase].until if phase < len(plan) else None
        return min(left, until.earliest(0, pace_of(trainer)) / per_epoch) if until is not None else left

    def _inputs_repeat(self) -> bool:
        trainer, module = self._session.trainer, self._session.module
        data = getattr(trainer, "datamodule", None)
        changes = any(overrides(name, module) or _changes(name, data) for name in _TRANSFERS)
        return not changes and repeats_inputs(trainer.train_dataloader)

    def _is_possible(self) -> bool:
        session = self._session
        if is_compiled(session.module) or shards_weights(session.trainer.strategy):
            return False
        if len(session.stack.networks) > 1 or session.stack.towers or session.stack.from_groups:
            return False
        towers, _ = find_towers(session.stack)
        return len(towers) == 1 and not active_random_sources(session.stack)


def _changes(name: str, data: object) -> bool:
    parents = either(LightningDataModule, LightningModule)
    method = getattr(type(data), name, None)
    return method is not None and not any(method is getattr(parent, name) for parent in parents)
