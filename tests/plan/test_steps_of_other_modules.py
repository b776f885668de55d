"""Modules whose training steps are unlike that of ``Classifier``: plans agree with what their fits keep."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from plan.observed import Observed
from plan.projects import fit_on
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAUROC

from lightning_freeze import LayerFreezing, Phase, PhasedFineTuning, StepTrigger, plan_training

PAIR = (torch.randn(6, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 1, 2]))


class Network(LightningModule):
    """A residual network over pairs of inputs and classes."""

    def __init__(self, optimizer: Callable[[Any], Any] | None = None, norm: type[nn.Module] = nn.BatchNorm1d) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 16)
        blocks = [nn.Sequential(nn.Linear(16, 32), norm(32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 16)) for _ in "123"]
        self.layers = nn.ModuleList(blocks)
        self.head = nn.Linear(16, 3)
        self.make_optimizer = optimizer or (lambda parameters: torch.optim.AdamW(parameters, lr=1e-3))

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.embed(inputs)
        for layer in self.layers:
            hidden = hidden + layer(hidden)
        output: Tensor = self.head(hidden)
        return output

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        inputs, classes = batch
        return cross_entropy(self(inputs), classes)

    def configure_optimizers(self) -> Any:
        return self.make_optimizer(self.parameters())


class WithoutIndex(Network):
    def training_step(self, batch: Any) -> Tensor:  # type: ignore[override]
        return cross_entropy(self(batch[0]), batch[1])


class MovesItsBatch(Network):
    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return {"x": batch[0], "y": batch[1]}

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return {**batch, "x": torch.cat([batch["x"]] * 2), "y": torch.cat([batch["y"]] * 2)}

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return {"loss": cross_entropy(self(batch["x"]), batch["y"])}


class NeedsItsHooks(Network):
    def on_train_start(self) -> None:
        self.weight = torch.ones(3)

    def on_train_epoch_start(self) -> None:
        self.factor = 2.0

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.smoothing = 0.1

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = cross_entropy(self(batch[0]), batch[1], weight=self.weight, label_smoothing=self.smoothing)
        return self.factor * loss


class WithMetrics(Network):
    """Its metrics read the values of what they are given."""

    def __init__(self) -> None:
        super().__init__()
        self.train_loss = MeanMetric()
        self.metrics = MetricCollection([MulticlassAUROC(3)])

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        logits = self(batch[0])
        loss = cross_entropy(logits, batch[1])
        self.train_loss(loss)
        self.log("loss", self.train_loss)
        self.log_dict(self.metrics(logits.softmax(-1), batch[1]))
        return loss


class LogsPictures(Network):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.logger is not None:
            self.logger.experiment.add_scalar("step", self.global_step)
        return super().training_step(batch, batch_idx)


@pytest.mark.fast_cases(5)
@pytest.mark.parametrize(
    "make",
    [Network, WithoutIndex, MovesItsBatch, NeedsItsHooks, WithMetrics, LogsPictures],
    ids=lambda make: make.__name__,
)
@pytest.mark.parametrize("layers", ["embeddings", "1"])
def test_memory_is_what_a_real_step_keeps(make: type[Network], layers: str) -> None:
    agrees(make(), layers)


def agrees(module: LightningModule, layers: str, **options: Any) -> None:
    """Compare a plan with a fit."""
    plan = plan_training(module, LayerFreezing(layers), PAIR, **options)
    observed = Observed()
    fit_on(module, [LayerFreezing(layers, verbose=False), observed], [PAIR], **options)
    memory = plan.phases[0].memory
    assert memory is not None, plan.notes
    assert plan.notes == ()
    assert memory.gradients == observed.gradients > 0
    assert memory.optimizer == observed.state
    assert memory.activations == pytest.approx(observed.activations, rel=0.02)


OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "Adagrad has its state from the start": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "ASGD reads values": lambda p: torch.optim.ASGD(p, lr=0.1),
    "NAdam reads values": lambda p: torch.optim.NAdam(p, lr=0.1),
    "Adafactor reads values": lambda p: torch.optim.Adafactor(p, lr=0.1),
    "a rate that is a tensor": lambda p: torch.optim.AdamW(p, lr=torch.tensor(1e-3)),
    "fused": lambda p: torch.optim.AdamW(p, lr=1e-3, fused=True),
    "groups": lambda p: torch.optim.AdamW([{"params": list(p)[:4], "lr": 1e-4}], lr=1e-3, amsgrad=True),
}


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_of_optimizers(name: str) -> None:
    agrees(Network(OPTIMIZERS[name]), "embeddings")


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_precision(precision: str) -> None:
    agrees(Network(norm=nn.LayerNorm), "embeddings", precision=precision)


def test_half_precision_of_an_accelerator_is_planned_without_a_warning() -> None:
    half = plan_training(Network(), LayerFreezing("embeddings"), PAIR, precision="16-mixed")
    assert half.notes == ()
    assert half.full == plan_training(Network(), [], PAIR, precision="bf16-mixed").full


@pytest.mark.parametrize("drop", [False, True])
def test_state_of_layers_that_are_frozen_again(drop: bool) -> None:
    """An optimizer keeps it, unless the schedule has it dropped."""
    module = Network()
    phases = [Phase("2,head", StepTrigger(1)), Phase("head")]
    options: dict[str, Any] = {"drop_optimizer_state": drop}
    plan = plan_training(module, PhasedFineTuning(phases, **options), PAIR, batches_per_epoch=2)
    observed = Observed()
    fit_on(module, [PhasedFineTuning(phases, verbose=False, **options), observed], [PAIR, PAIR])
    memory = plan.phases[1].memory
    assert memory is not None
    assert memory.optimizer == observed.state


def test_metrics_keep_what_they_have_seen() -> None:
    module = WithMetrics()
    module.train_loss.update(torch.tensor(3.0))
    plan_training(module, LayerFreezing("embeddings"), PAIR)
    assert module.train_loss.compute() == 3.0
    assert isinstance(module.train_loss, Metric)


class ReadsValues(Network):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        return loss if loss.item() < 1e9 else None


def test_the_line_that_reads_values_is_named() -> None:
    (note,) = plan_training(ReadsValues(), LayerFreezing("embeddings"), PAIR).notes
    assert "test_steps_of_other_modules.py, line" in note
    assert "loss.item() < 1e9" in note
