"""The contenders: each trains one subject end to end and is timed from outside."""

from __future__ import annotations

import contextlib
import copy
import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BackboneFinetuning
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.speedtest.subjects import Batch, Subject
from benchmarks.speedtest.truncated_models import Cut
from benchmarks.speedtest.turns import pass_turn
from lightning_freeze import GradualUnfreezing, LayerFreezing, LayerStack
from lightning_freeze.callbacks.cache_filling import CacheFillingCallback, FillComplete
from lightning_freeze.callbacks.frozen_prefix_cache import FrozenPrefixCache

RATE = 1e-5
#: Trains, and returns the seconds of each batch.
Run = Callable[[], list[float]]


class Finetuned(LightningModule):
    """A plain LightningModule around the model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss: Tensor = self.model(**batch).loss
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.log("val_loss", self.model(**batch).loss)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=RATE)


class Samples(Dataset[Batch]):
    """The samples of a batch."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return len(next(iter(self.batch.values())))

    def __getitem__(self, index: int) -> Batch:
        return {name: tensor[index] for name, tensor in self.batch.items()}


def loaders(subject: Subject) -> tuple[DataLoader[Batch], DataLoader[Batch]]:
    """Training data, shuffled, and one batch of validation data."""
    size = subject.batch_size
    data = subject.inputs(size * (subject.batches + 1))
    train = Samples({name: tensor[:-size] for name, tensor in data.items()})
    validation = Samples({name: tensor[-size:] for name, tensor in data.items()})
    generator = torch.Generator().manual_seed(0)
    options: dict[str, Any] = {"batch_size": size, "collate_fn": subject.collate}
    return DataLoader(train, shuffle=True, generator=generator, **options), DataLoader(validation, **options)


class Clock(Callback):
    """Measures the time of each training batch, from the end of the previous one."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._last = 0.0

    def on_train_epoch_start(self, *_: Any) -> None:
        pass_turn()
        self._last = time.perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        now = time.perf_counter()
        self.seconds.append(now - self._last)
        self._last = now


def trained(subject: Subject, folder: Path, module: LightningModule, *callbacks: Callback) -> Run:
    """Prepare a run of ``Trainer.fit``."""
    train, validation = loaders(subject)
    clock = Clock()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=subject.epochs,
        default_root_dir=folder,
        callbacks=[*callbacks, clock],
        logger=False,
        enable_checkpointing=any("FTSCheckpoint" in type(callback).__name__ for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )

    def run() -> list[float]:
        trainer.fit(module, train, validation)
        return clock.seconds

    return run


def frozen_names(subject: Subject, module: nn.Module) -> set[str]:
    """Names of the parameters that the subject freezes."""
    frozen = set(LayerStack(module).select(subject.freeze).parameters)
    return {name for name, parameter in module.named_parameters() if parameter in frozen}


def full(subject: Subject, folder: Path) -> Run:
    return trained(subject, folder, Finetuned(subject.build()))


def by_hand(subject: Subject, folder: Path) -> Run:
    module = Finetuned(subject.build())
    names = frozen_names(subject, module)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name not in names)
    return trained(subject, folder, module)


def backbone_finetuning(subject: Subject, folder: Path) -> Run:
    module = Finetuned(subject.build())
    # The part that stays frozen is its backbone.
    module.backbone = nn.ModuleList(LayerStack(module).select(subject.freeze).modules)
    return trained(subject, folder, module, BackboneFinetuning(unfreeze_backbone_at_epoch=10**6, train_bn=False))


def finetuning_scheduler(subject: Subject, folder: Path) -> Run:
    from finetuning_scheduler import FinetuningScheduler, FTSCheckpoint

    module = Finetuned(subject.build())
    names = frozen_names(subject, module)
    rest = [name for name, _ in module.named_parameters() if name not in names]
    schedule = {0: {"params": rest, "max_transition_epoch": subject.epochs}}
    saving = FTSCheckpoint(dirpath=folder / "fts", monitor="val_loss", save_top_k=0, save_last=False)
    scheduler = FinetuningScheduler(ft_schedule=schedule, epoch_transitions_only=True, restore_best=False)
    return trained(subject, folder, module, scheduler, saving)


def layer_freezing(subject: Subject, folder: Path) -> Run:
    return trained(subject, folder, Finetuned(subject.build()), LayerFreezing(subject.freeze, verbose=False))


def cold(subject: Subject, folder: Path) -> Run:
    cache = FrozenPrefixCache(verbose=False)
    return trained(subject, folder, Finetuned(subject.build()), LayerFreezing(subject.freeze, verbose=False), cache)


def warm(subject: Subject, folder: Path) -> Run:
    # Filled by an earlier run, not timed, over the very same data.
    place = folder / "cache"
    if not place.exists():
        module = Finetuned(subject.build())
        cache = FrozenPrefixCache(cache_dir=place, verbose=False)
        train, validation = loaders(subject)
        freezing = LayerFreezing(subject.freeze, verbose=False)
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = Trainer(
            accelerator="cpu", max_epochs=1, callbacks=[freezing, cache], enable_model_summary=False, **quiet
        )
        trainer.fit(module, train, validation)
    cache = FrozenPrefixCache(cache_dir=place, verbose=False)
    return trained(subject, folder, Finetuned(subject.build()), LayerFreezing(subject.freeze, verbose=False), cache)


def filled_ahead(subject: Subject, folder: Path) -> Run:
    """Filling the cache of all phases, and then a fit that reads it; the time of both counts."""
    freezing = LayerFreezing(subject.freeze, verbose=False) if subject.freeze else GradualUnfreezing(verbose=False)
    place = Path(tempfile.mkdtemp(dir=folder))
    cache = FrozenPrefixCache(cache_dir=place, verbose=False)
    fit = trained(subject, folder, Finetuned(subject.build()), freezing, cache)

    def run() -> list[float]:
        train, validation = loaders(subject)
        callbacks = [copy.deepcopy(freezing), copy.deepcopy(cache), CacheFillingCallback()]
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=subject.epochs,
            callbacks=callbacks,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            **quiet,
        )
        with contextlib.suppress(FillComplete):
            trainer.fit(Finetuned(subject.build()), train, validation)
        return fit()

    return run


def ideal(subject: Subject, folder: Path) -> Run:
    """The hand-cut model of what trains, in a plain loop, on activations in RAM."""
    cut = subject.cut(subject.build())
    *train, validation = prepared(cut, subject)
    optimizer = torch.optim.AdamW([p for p in cut.model.parameters() if p.requires_grad], lr=RATE)

    def run() -> list[float]:
        seconds = []
        for _ in range(subject.epochs):
            pass_turn()
            cut.model.train()
            for batch in train:
                began = time.perf_counter()
                optimizer.zero_grad()
                cut.model(**batch).loss.backward()
                optimizer.step()
                seconds.append(time.perf_counter() - began)
            cut.model.eval()
            with torch.inference_mode():
                cut.model(**validation)
        return seconds

    return run


def prepared(cut: Cut, subject: Subject) -> list[dict[str, Any]]:
    """The inputs of a hand-cut model for all batches, of which the last one is for validation."""
    batches = itertools.chain(*loaders(subject))
    return [{k: v.detach() if isinstance(v, Tensor) else v for k, v in cut.prepare(b).items()} for b in batches]


def gradual(subject: Subject, folder: Path) -> Run:
    return trained(subject, folder, Finetuned(subject.build()), GradualUnfreezing(verbose=False))


def gradual_cached(subject: Subject, folder: Path) -> Run:
    cache = FrozenPrefixCache(verbose=False)
    return trained(subject, folder, Finetuned(subject.build()), GradualUnfreezing(verbose=False), cache)


Contender = Callable[[Subject, Path], Run]
STATIC: dict[str, Contender] = {
    "full fine-tuning": full,
    "requires_grad by hand": by_hand,
    "BackboneFinetuning": backbone_finetuning,
    "finetuning-scheduler": finetuning_scheduler,
    "LayerFreezing": layer_freezing,
    "LayerFreezing + cache, cold": cold,
    "LayerFreezing + cache, warm": warm,
    "ideal, cut by hand": ideal,
}
#: What a contender needs beside this package and Lightning.
PACKAGES = {"finetuning-scheduler": "finetuning_scheduler"}
FILLED_AHEAD = "cache filled ahead, and fit"
#: Only with ``--fill``.
FILLED: dict[str, Contender] = {FILLED_AHEAD: filled_ahead}
GRADUAL: dict[str, Contender] = {
    "full fine-tuning": full,
    "GradualUnfreezing": gradual,
    "GradualUnfreezing + cache, cold": gradual_cached,
}
