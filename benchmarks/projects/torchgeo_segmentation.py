"""torchgeo: semantic segmentation of satellite images with its trainer, as in its tutorial."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch
import torch
from checks import Project, Run, main
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, Dataset
from torchgeo.trainers import SemanticSegmentationTask


class Scenes(Dataset):
    """Random scenes with four channels and two classes."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = torch.rand(4, 32, 32, generator=torch.Generator().manual_seed(index))
        return {"image": image, "mask": (image[0] > 0.5).long()}


def loader(shuffle: bool) -> DataLoader:
    return DataLoader(Scenes(), batch_size=4, shuffle=shuffle)


def fit(run: Run) -> Any:
    task = SemanticSegmentationTask(
        model="unet", backbone="resnet18", weights=None, in_channels=4, num_classes=2, task="multiclass", lr=1e-3
    )
    trainer = Trainer(
        max_epochs=run.epochs,
        callbacks=run.callbacks,
        default_root_dir=run.folder,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(task, loader(shuffle=True), loader(shuffle=False))
    return trainer


def save_and_load(trainer: Any, folder: Path) -> tuple[Any, Any]:
    trainer.save_checkpoint(folder / "task.ckpt")
    loaded = SemanticSegmentationTask.load_from_checkpoint(folder / "task.ckpt", weights_only=False)
    return masks(trainer.model), masks(loaded)


@torch.no_grad()
def masks(task: Any) -> Any:
    return task.eval()(next(iter(loader(shuffle=False)))["image"]).numpy()


if __name__ == "__main__":
    main(Project("torchgeo", "segmentation with a U-Net", lightning.pytorch, fit, save_and_load))
