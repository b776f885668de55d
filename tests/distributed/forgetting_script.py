"""Fits a classifier under DDP and in one process with Forgetting, and saves what each rank measures and logs.

Usage: forgetting_script.py MODEL TEXTS ROWS OUT
"""

import json
import sys
from pathlib import Path

import torch
from distributed_processes import run_ranks
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy

from lightning_freeze import Forgetting, LayerFreezing, TextDataModule, TransformerModule


def fit(folder, texts, rows, out, **settings):
    torch.manual_seed(0)
    module = TransformerModule(folder, num_classes=2, pooling="mean", dropout=0.0)
    data = TextDataModule(folder, train=rows, bucket_batches=0, seed=0, batch_size=settings.pop("batch_size"))
    forgetting = Forgetting(texts, verbose=False)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[LayerFreezing("embeddings, 50%", verbose=False), forgetting],
        logger=CSVLogger(out, name="logs", version=settings.pop("version")),
        **settings,
        **quiet,
    )
    trainer.fit(module, data)
    return forgetting.result.to_dict()


def main(folder, texts, rows, out):
    def work(rank):
        strategy = DDPStrategy(process_group_backend="gloo")
        result = fit(folder, texts, rows, out, batch_size=8, strategy=strategy, devices=2, version="ddp")
        Path(out, f"{rank}.json").write_text(json.dumps(result))

    def alone():
        result = fit(folder, texts, rows, out, batch_size=16, version="alone")
        Path(out, "alone.json").write_text(json.dumps(result))

    run_ranks(work, alone)


if __name__ == "__main__":
    main(*sys.argv[1:])
