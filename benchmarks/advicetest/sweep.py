"""The exhaustive sweep that advice is judged by: every depth and strategy, trained and tested with every seed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers.logger import DummyLogger

from lightning_freeze import (
    FrozenPrefixCache,
    LayerStack,
    RelativeGradientLR,
    TextDataModule,
    ULMFiT,
    plan_training,
)
from lightning_freeze.advice.candidates import Candidate, candidates_for
from lightning_freeze.advice.fits.fit_store import FitStore
from lightning_freeze.advice.fits.single_fit import FitScore
from lightning_freeze.advice.measuring import Measurements


@dataclass(frozen=True)
class Bench:
    """What all fits on one data set share.

    Attributes:
        make: Makes the module.
        data: The data.
        epochs: Epochs of a whole run.
        precision: Of the Trainer.
        cache_dir: Where hidden states are kept; the fits of the sweep share them too.
        store: Where scores are kept.
    """

    make: Callable[[], LightningModule]
    data: TextDataModule
    epochs: int
    precision: str
    cache_dir: Path
    store: FitStore

    def test_score(self, candidate: Candidate, seed: int) -> FitScore:
        """Test accuracy after the last step, trained unless it is known.

        Args:
            candidate: The plan.
            seed: Of the new head, the order of the data, and dropout.
        """
        facts = {"what": "test", "plan": key_of(candidate), "seed": seed}
        return self.store.get(facts, lambda: self._fit(candidate, seed))

    def relative_time(self, candidate: Candidate) -> float:
        """Predicted time of a whole run with FrozenPrefixCache, full fine-tuning is 1."""
        plan = plan_training(
            self.make(), without_cache(candidate).build(), datamodule=self.data, max_epochs=self.epochs
        )
        found = plan.total_time(cached=True)
        return 1.0 if found is None else found

    def _fit(self, candidate: Candidate, seed: int) -> FitScore:
        import time

        seed_everything(seed, verbose=False)
        module = self.make()
        callbacks: list[Callback] = [
            *without_cache(candidate).build(),
            FrozenPrefixCache(self.cache_dir, verbose=False),
        ]
        trainer = Trainer(
            max_epochs=self.epochs, accelerator="cpu", precision=self.precision, callbacks=callbacks,
            logger=DummyLogger(), limit_val_batches=0, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        began = time.perf_counter()
        trainer.fit(module, datamodule=self.data)
        seconds = time.perf_counter() - began
        (found,) = trainer.test(module, datamodule=self.data, verbose=False)
        return FitScore(float(found["test_accuracy"]), (), seconds)


def sweep_plans(stack: LayerStack, steps: int, rate: float) -> list[Candidate]:
    """Every depth from the embeddings to the head, and the strategies.

    Args:
        stack: The layers of the module.
        steps: Optimizer steps of a whole run.
        rate: The highest learning rate.
    """
    selectors = ["embeddings", *(f"embeddings,:{depth}" for depth in range(1, len(stack.blocks) + 1))]
    third = max(1, len(stack.blocks) // 3)
    depths = [_freezing(selector) for selector in [*selectors, f"{third}:"]]
    rates = [
        Candidate("ULMFiT", "", make=lambda: [ULMFiT(verbose=False)]),
        Candidate("relative gradients", "", make=lambda: [RelativeGradientLR(verbose=False)]),
    ]
    found = {key_of(each): each for each in [*candidates_for(stack, Measurements(), steps, rate), *depths, *rates]}
    return list(found.values())


def frozen(layers: str) -> Candidate:
    """What the rule of thumb asks for, as a plan; a percentage is written as blocks, so that equal plans are equal.

    Args:
        layers: Its selector, or nothing.
    """
    return _freezing(layers) if layers else Candidate("full fine-tuning", "")


def without_cache(candidate: Candidate) -> Candidate:
    """The plan without the cache, which changes no result.

    Args:
        candidate: The plan.
    """
    kept = tuple(entry for entry in candidate.entries if entry["class_path"] != "FrozenPrefixCache")
    return Candidate(candidate.name, candidate.why, kept, candidate.make)


def key_of(candidate: Candidate) -> str:
    """What tells plans apart: their callbacks without the cache; plans made by code go by their name.

    Args:
        candidate: The plan.
    """
    if candidate.make is not None:
        return candidate.name
    return json.dumps(_plain(without_cache(candidate).entries), sort_keys=True)


def _freezing(selector: str) -> Candidate:
    entry = {"class_path": "LayerFreezing", "init_args": {"layers": selector}}
    return Candidate(f"freeze {selector}", "", (entry,))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, Sequence) and not isinstance(value, str) else value
