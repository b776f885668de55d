"""Modules and data that advice is asked about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_freeze import TextDataModule, TransformerModule


def text_module(folder: Path, **options: Any) -> TransformerModule:
    """A classifier of reviews on a tiny encoder."""
    return TransformerModule(str(folder), num_classes=2, **options)


def text_data(folder: Path, file: Path) -> TextDataModule:
    """Reviews, many of them for validation."""
    return TextDataModule(tokenizer=str(folder), data=str(file), split=(0.6, 0.3, 0.1), batch_size=8)


class Block(nn.Module):
    """A residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.linear(self.norm(x)).relu()
        return y


class Own(LightningModule):
    """A module of a user's own: a stem, three blocks and a head; numbers or classes."""

    def __init__(self, classes: int | None = None, manual: bool = False) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 8)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(8, classes or 1)
        self.classes = classes
        self.automatic_optimization = not manual
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(x)
        return out

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        if self.classes:
            return nn.functional.cross_entropy(self(x), y)
        return nn.functional.mse_loss(self(x).squeeze(-1), y)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train_loss", loss)
        if not self.automatic_optimization:
            optimizer: Any = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


class OwnData(LightningDataModule):
    """Random inputs, of which the first entry is the target."""

    def __init__(self, classes: int | None = None, count: int = 48) -> None:
        super().__init__()
        x = torch.randn(count, 4, generator=torch.Generator().manual_seed(0))
        y = x[:, 0] if classes is None else (x[:, 0] > 0).long()
        self.train, self.val = TensorDataset(x, y), TensorDataset(x[:16], y[:16])

    def train_dataloader(self) -> Any:
        return DataLoader(self.train, batch_size=8)

    def val_dataloader(self) -> Any:
        return DataLoader(self.val, batch_size=8)

    def test_dataloader(self) -> Any:
        raise AssertionError("advice never reads the test data")
