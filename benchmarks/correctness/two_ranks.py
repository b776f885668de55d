"""Runs one tool in two processes with DDP; each rank saves its weights. Called by ``run.py``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from model import EPOCHS, Classifier, loader
from tools import TOOLS


class Leave(Callback):
    """Saves the weights of each rank at the end of training."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        torch.save(pl_module.state_dict(), self.folder / f"rank{trainer.global_rank}.pt")


class Sharded(Classifier):
    """Each rank reads its half of every batch."""

    def train_dataloader(self) -> Any:
        return loader(size=2, ranks=(self.trainer.global_rank, 2))

    val_dataloader = train_dataloader


def main(name: str, folder: Path) -> None:
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        use_distributed_sampler=False,
        max_epochs=EPOCHS,
        callbacks=[TOOLS[name](folder), Leave(folder)],
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(Sharded())


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
