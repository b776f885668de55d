"""A module to plan, and what a real run of it does."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForSequenceClassification

CONFIG = BertConfig(
    vocab_size=40,
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=64,
    max_position_embeddings=16,
)
BATCH = {
    "input_ids": torch.randint(5, 40, (4, 12), generator=torch.Generator().manual_seed(0)),
    "attention_mask": torch.ones(4, 12, dtype=torch.long),
    "labels": torch.tensor([0, 1, 0, 1]),
}


class Classifier(LightningModule):
    """A classifier with AdamW and a schedule that lowers the rate at each step."""

    def __init__(self, meta: bool = False, config: BertConfig = CONFIG) -> None:
        super().__init__()
        with torch.device("meta") if meta else nullcontext():
            self.model = BertForSequenceClassification(config)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss: Tensor = self.model(**batch).loss
        self.log("train_loss", loss, on_step=True)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.model(**batch).loss)

    def val_dataloader(self) -> Any:
        return DataLoader(Batches(1), batch_size=None)  # type: ignore[arg-type]

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Batches:
    """The same batch several times."""

    def __init__(self, times: int) -> None:
        self.times = times

    def __len__(self) -> int:
        return self.times

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if index >= self.times:
            raise IndexError
        return BATCH


def fit(module: LightningModule, callbacks: Sequence[Callback], epochs: int, batches: int) -> Trainer:
    """Fit quietly on the CPU."""
    return fit_on(module, callbacks, Batches(batches), max_epochs=epochs)


def fit_on(module: LightningModule, callbacks: Sequence[Callback], batches: Any, **options: Any) -> Trainer:
    """Fit quietly on the CPU with these batches, for one epoch unless the options say otherwise."""
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": 1,
        "callbacks": list(callbacks),
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = Trainer(**{**settings, **options})
    trainer.fit(module, DataLoader(batches, batch_size=None))
    return trainer
