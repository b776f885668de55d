"""Trains one candidate, and scores it on the validation data."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities.seed import isolate_rng

from lightning_freeze.errors import ConfigurationError, listing, suggest
from lightning_freeze.module import TransformerModule
from lightning_freeze.module.batch import unpack
from lightning_freeze.run_warnings.record import warnings_of

_SEED_VARIABLE = "PL_GLOBAL_SEED"


class UnknownMetricError(ConfigurationError):
    """The module does not log the metric."""


@dataclass(frozen=True)
class FitScore:
    """The score of one fit.

    Attributes:
        score: The metric after the last step.
        examples: For accuracy, 1 for each validation example that is right and 0 for each other one; else empty.
        seconds: How long training took.
        warnings: What the run has warned of.
    """

    score: float
    examples: tuple[float, ...]
    seconds: float
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class FitSettings:
    """What all fits of a race share.

    Attributes:
        make: Makes the module as it is before training.
        datamodule: The data.
        monitor: The metric, as the module logs it in validation.
        trainer: Arguments of the Trainer.
        batches_per_epoch: Training batches of an epoch of the whole run.
        make_callbacks: Makes further callbacks of the user.
    """

    make: Callable[[], LightningModule]
    datamodule: LightningDataModule
    monitor: str
    trainer: Mapping[str, Any]
    batches_per_epoch: int = 1
    make_callbacks: Callable[[], list[Callback]] = list


def run_fit(settings: FitSettings, callbacks: Sequence[Callback], seed: int, share: float = 1.0) -> FitScore:
    """Train and score. The seed decides the new layers of the module, the order of the data, and dropout.

    A short run has as many epochs as the whole one, and fewer batches in each. So what counts epochs, and what waits
    for a validation, takes place in it too.

    Args:
        settings: What all fits share.
        callbacks: The callbacks of the candidate.
        seed: The seed.
        share: How long to train, as a share of the whole run.

    Raises:
        UnknownMetricError: If the module does not log the metric.
    """
    before = os.environ.get(_SEED_VARIABLE)
    with isolate_rng():
        try:
            seed_everything(seed, verbose=False)
            return _run(settings, callbacks, share)
        finally:
            settings.datamodule.trainer = None
            os.environ.pop(_SEED_VARIABLE, None)
            if before is not None:
                os.environ[_SEED_VARIABLE] = before


def _run(settings: FitSettings, callbacks: Sequence[Callback], share: float) -> FitScore:
    module, scores = settings.make(), _ExampleScores(settings.monitor)
    trainer = Trainer(
        **{**settings.trainer, **_shortened(settings, share)},
        callbacks=[*settings.make_callbacks(), *callbacks, scores],
        logger=DummyLogger(),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    began = time.perf_counter()
    trainer.fit(module, datamodule=settings.datamodule)
    seconds = time.perf_counter() - began
    scores.clear()
    trainer.validate(module, datamodule=settings.datamodule, verbose=False)
    found = trainer.callback_metrics
    if settings.monitor not in found:
        raise UnknownMetricError(
            f"monitor={settings.monitor!r} is not logged in validation: expected one of "
            f"{listing(sorted(found)) or 'the metrics, and there is none'}.{suggest(settings.monitor, found)}"
        )
    warned = tuple(warning.message for warning in warnings_of(trainer))
    return FitScore(float(found[settings.monitor]), tuple(scores.values), seconds, warned)


def free_memory() -> None:
    """Free what earlier fits have left: trainer, module and callbacks refer to one another until they are collected."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _shortened(settings: FitSettings, share: float) -> dict[str, Any]:
    if share >= 1:
        return {}
    batches = max(1, round(share * settings.batches_per_epoch))
    steps = settings.trainer.get("max_steps") or -1
    # None, which counts steps across epochs, goes with a whole number as the interval only.
    epochs = settings.trainer.get("check_val_every_n_epoch", 1) or 1
    limits = {"limit_train_batches": batches, "val_check_interval": 1.0, "check_val_every_n_epoch": epochs}
    return {**limits, "max_steps": steps if steps < 0 else max(1, round(share * steps))}


class _ExampleScores(Callback):
    """Whether each validation example is classified correctly, where accuracy is what counts."""

    def __init__(self, monitor: str) -> None:
        self.values: list[float] = []
        self._is_wanted = monitor == "val_accuracy"

    def clear(self) -> None:
        self.values = []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        is_class = isinstance(pl_module, TransformerModule) and pl_module.task.target == "class"
        if not self._is_wanted or not is_class or trainer.state.fn != "validate":
            return
        inputs, labels = unpack(batch)
        inputs.pop("index", None)
        with torch.inference_mode():
            right = pl_module(**inputs).argmax(-1) == labels
        self.values += right.double().tolist()
