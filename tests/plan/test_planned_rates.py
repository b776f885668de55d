"""The rates of a plan are the highest ones that a fit has in each phase."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from plan.projects import BATCH, Batches, Classifier, fit_on
from torch.optim import lr_scheduler as schedulers

from lightning_freeze import (
    LISA,
    BlockCoordinate,
    DiscriminativeLR,
    GradualUnfreezing,
    LayerFreezing,
    Phase,
    PhasedFineTuning,
    StepTrigger,
    ULMFiT,
    plan_training,
)
from lightning_freeze.plan import step_costs
from lightning_freeze.plan.step.fake_step import MeasuredStep, measure_step
from lightning_freeze.session.moments import Moments

# What trains in the phases that a run reaches is compared, in short runs too.
pytestmark = pytest.mark.filterwarnings("ignore:.*some layers will never train")

PHASES = [Phase("head", StepTrigger(3), lr=2), Phase("all", factors={"0": 0.1})]


@pytest.fixture(autouse=True)
def steps_are_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What steps cost is no matter here, and takes most of the time of a plan."""
    measured: list[MeasuredStep] = []

    def first(*args: Any) -> MeasuredStep:
        if not measured:
            measured.append(measure_step(*args))
        return measured[0]

    monkeypatch.setattr(step_costs, "measure_step", first)


class Rates(Callback):
    """Notes how many parameters train in each batch, and the highest rate of each layer that trains."""

    def __init__(self) -> None:
        self.trainable: list[int] = []
        self.rates: list[dict[str, float]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        moments = Moments.of(pl_module)
        assert moments is not None
        rates = moments.session.rates.rates_of(trainer.optimizers[0])
        trains = {layer.name: [p for p in layer.parameters() if p.requires_grad] for layer in moments.session.stack}
        self.trainable.append(sum(p.numel() for own in trains.values() for p in own))
        self.rates.append({name: max(rates[p] for p in own) for name, own in trains.items() if own})


class Scheduled(Classifier):
    def __init__(self, make: Callable[[Any], Any] | None = None, interval: str = "step", frequency: int = 1) -> None:
        super().__init__()
        self.make, self.interval, self.frequency = make, interval, frequency

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        if self.make is None:
            return optimizer
        scheduler = {"scheduler": self.make(optimizer), "interval": self.interval, "frequency": self.frequency}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}


def agrees(make: Callable[[], Classifier], callbacks: Callable[[], list[Any]], batches: int, **options: Any) -> None:
    """Compare a plan with a fit."""
    plan = plan_training(make(), callbacks(), BATCH, batches_per_epoch=batches, **options)
    seen = Rates()
    fit_on(make(), [*callbacks(), seen], Batches(batches), **options)
    assert plan.batches == len(seen.rates)
    for phase in plan.phases:
        assert set(seen.trainable[phase.first_batch : phase.last_batch]) == {phase.trainable}
        for layer in phase.layers:
            rates = [r[layer.name] for r in seen.rates[phase.first_batch : phase.last_batch] if layer.name in r]
            assert max(layer.rates, default=None) == (pytest.approx(max(rates)) if rates else None)


def _gradual() -> list[Any]:
    return [GradualUnfreezing(trigger=StepTrigger(4), verbose=False)]


@pytest.mark.fast_cases(9)
@pytest.mark.parametrize("accumulated", [1, 2, 3])
@pytest.mark.parametrize("frequency", [1, 2, 3])
@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_frequency(interval: str, frequency: int, accumulated: int) -> None:
    def make() -> Classifier:
        return Scheduled(lambda optimizer: schedulers.ExponentialLR(optimizer, 0.9), interval, frequency)

    agrees(make, _gradual, 7, max_epochs=3, accumulate_grad_batches=accumulated)


@pytest.mark.slow
def test_a_single_peak_in_a_long_phase() -> None:
    def make() -> Classifier:
        return Scheduled(lambda optimizer: schedulers.LambdaLR(optimizer, lambda step: 10.0 if step == 307 else 1.0))

    agrees(make, lambda: [LayerFreezing("embeddings", verbose=False)], 310, max_epochs=1)


@pytest.mark.fast_cases(9)
@pytest.mark.parametrize(
    "callbacks",
    [
        lambda: [GradualUnfreezing(verbose=False), DiscriminativeLR(0.5, verbose=False)],
        lambda: [
            PhasedFineTuning([Phase("head", StepTrigger(3), lr=2), Phase("all", factors={"0": 0.1})], verbose=False)
        ],
        lambda: [ULMFiT(verbose=False)],
        lambda: [ULMFiT(StepTrigger(5), cut_frac=0.4, ratio=8, verbose=False)],
        lambda: [LISA(interval=5, activated_layers=1, verbose=False)],
        lambda: [LISA(interval=1, activated_layers=1, seed=3, verbose=False)],
        lambda: [BlockCoordinate(interval=3, verbose=False)],
        lambda: [BlockCoordinate(order="random", interval=2, verbose=False)],
        lambda: [BlockCoordinate(verbose=False)],
    ],
)
@pytest.mark.parametrize("accumulated", [1, 2])
def test_callbacks(callbacks: Callable[[], list[Any]], accumulated: int) -> None:
    agrees(Scheduled, callbacks, 6, max_epochs=6, accumulate_grad_batches=accumulated)


def test_turns_beyond_those_that_are_shown() -> None:
    plan = plan_training(Scheduled(), [LISA(interval=2, activated_layers=1)], BATCH, batches_per_epoch=1000)
    assert plan.batches == 80
    assert "Only the first 80 of 1,000 training batches are planned." in plan.notes[0]
    assert plan.total_time() is not None


def test_turns_of_a_run_without_end() -> None:
    plan = plan_training(Scheduled(), [LISA(interval=2, activated_layers=1)], BATCH, max_epochs=-1)
    assert plan.batches == 80
    assert "Only the first 80 training batches are planned." in plan.notes[0]
