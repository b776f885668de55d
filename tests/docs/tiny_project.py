"""The names that code blocks in the pages use without defining them: a small project of a reader."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

VOCABULARY = 20
LENGTH = 8


class TinyModule(LightningModule):
    """A transformer classifier of four blocks with AdamW."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 16)
        block = nn.TransformerEncoderLayer(16, nhead=2, dim_feedforward=32, batch_first=True)
        self.encoder = nn.TransformerEncoder(block, 4, enable_nested_tensor=False)
        self.classifier = nn.Linear(16, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.classifier(self.encoder(self.embedding(tokens)).mean(dim=1))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        tokens, labels = batch
        return nn.functional.cross_entropy(self(tokens), labels)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        tokens, labels = batch
        self.log("val_loss", nn.functional.cross_entropy(self(tokens), labels))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


class TinyData(LightningDataModule):
    """Three batches of eight random rows for training, one for validation."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(VOCABULARY, (32, LENGTH), generator=generator)
        self.rows = TensorDataset(tokens, tokens[:, 0] % 2)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(torch.utils.data.Subset(self.rows, range(24)), batch_size=8)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(torch.utils.data.Subset(self.rows, range(24, 32)), batch_size=8)


def names() -> dict[str, Any]:
    """What a reader has: a module, its data and a batch of it."""
    torch.manual_seed(0)
    data = TinyData()
    return {"your_module": TinyModule(), "your_data": data, "one_batch": next(iter(data.train_dataloader()))}
