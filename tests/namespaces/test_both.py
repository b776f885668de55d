"""Projects import Lightning as ``lightning.pytorch`` or as ``pytorch_lightning``; the callbacks do the same in both."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch
import pytest
import pytorch_lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_freeze import DiscriminativeLR, EpochTrigger, FrozenPrefixCache, GradualUnfreezing, LayerFreezing
from lightning_freeze.errors import ConfigurationError
from lightning_freeze.layers import LayerStack

NAMESPACES = [lightning.pytorch, pytorch_lightning]


def module(namespace: Any, late: bool = False) -> Any:
    class Module(namespace.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.lr, self.batch_size = 0.1, 4
            if not late:
                self.build()

        def configure_model(self) -> None:
            if not hasattr(self, "head"):
                self.build()

        def build(self) -> None:
            torch.manual_seed(0)
            self.embeddings = nn.Linear(4, 8)
            self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)) for _ in range(3))
            self.head = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.embeddings(x)
            for block in self.blocks:
                x = block(x)
            return self.head(x)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self(batch[0]).pow(2).mean()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", torch.tensor(1.0))

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=self.lr)

        def train_dataloader(self) -> DataLoader:
            data = torch.randn(32, 4, generator=torch.Generator().manual_seed(1))
            return DataLoader(TensorDataset(data), batch_size=self.batch_size)

        val_dataloader = train_dataloader

    return Module()


def fit(namespace: Any, callbacks: Any, tmp_path: Path, late: bool = False, **options: Any) -> Any:
    fitted = module(namespace, late)
    settings = {"max_epochs": 6, "accelerator": "cpu", "logger": False, "enable_progress_bar": False, **options}
    trainer = namespace.Trainer(
        callbacks=callbacks,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=tmp_path,
        **settings,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(fitted)
    return trainer.global_step, {name: value.clone() for name, value in fitted.state_dict().items()}


def gradual(**options: Any) -> GradualUnfreezing:
    return GradualUnfreezing(EpochTrigger(1), verbose=False, **options)


def finetuning(namespace: Any) -> Any:
    class Finetuning(namespace.callbacks.BaseFinetuning):
        def freeze_before_training(self, pl_module: Any) -> None:
            self.freeze(pl_module.embeddings)

        def finetune_function(self, *args: Any) -> None: ...

    return Finetuning()


CALLBACKS = {
    "static": lambda namespace: [LayerFreezing("embeddings,:2", verbose=False)],
    "gradual, rates": lambda namespace: [gradual(warmup_steps=3), DiscriminativeLR(0.5, verbose=False)],
    "cache": lambda namespace: [LayerFreezing("embeddings,:2", verbose=False), FrozenPrefixCache(verbose=False)],
    "early stopping": lambda namespace: [gradual(), namespace.callbacks.EarlyStopping("val_loss", patience=1)],
    "averaging": lambda namespace: [
        gradual(),
        DiscriminativeLR(0.5, verbose=False),
        namespace.callbacks.StochasticWeightAveraging(0.01, swa_epoch_start=3),
    ],
    "rate finder": lambda namespace: [gradual(), namespace.callbacks.LearningRateFinder(num_training_steps=5)],
    "batch size finder": lambda namespace: [
        gradual(),
        namespace.callbacks.BatchSizeFinder(max_trials=2, steps_per_trial=1),
    ],
    "one callback, not in a list": lambda namespace: gradual(),
}


@pytest.mark.fast_cases(3, "gradual, rates", "cache", "averaging")
@pytest.mark.parametrize(
    "callbacks",
    [pytest.param(made, marks=pytest.mark.slow) if "finder" in name else made for name, made in CALLBACKS.items()],
    ids=CALLBACKS,
)
def test_a_fit_is_the_same_in_both(callbacks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (steps, weights), (other_steps, others) = (fit(n, callbacks(n), tmp_path) for n in NAMESPACES)
    assert steps == other_steps > 0
    torch.testing.assert_close(others, weights, rtol=0, atol=0)


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_a_model_built_late_is_frozen_in_time(namespace: Any, tmp_path: Path) -> None:
    _, weights = fit(namespace, [LayerFreezing("embeddings,:2", verbose=False)], tmp_path, late=True)
    torch.manual_seed(0)
    assert torch.equal(weights["embeddings.weight"], nn.Linear(4, 8).weight)


@pytest.mark.parametrize("namespace", NAMESPACES)
@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        (lambda n: [gradual(), finetuning(n)], "both decide which parameters train"),
        (
            lambda n: [gradual(restore_best=True, monitor="val_loss"), n.callbacks.WeightAveraging()],
            "validates averaged weights",
        ),
    ],
)
def test_what_cannot_be_right_is_refused_in_both(namespace: Any, callbacks: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(namespace.utilities.exceptions.MisconfigurationException, match=message) as error:
        fit(namespace, callbacks(namespace), tmp_path)
    assert isinstance(error.value, ConfigurationError)


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_layers_do_not_depend_on_the_namespace(namespace: Any) -> None:
    assert LayerStack(module(namespace)).names == ["embeddings", "0", "1", "2", "head"]
