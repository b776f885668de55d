"""lightly: self-supervised learning with SimCLR, as in its quick start for Lightning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning
import torch
import torchvision
from checks import Project, Run, main
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms.simclr_transform import SimCLRTransform
from PIL import Image
from torch.utils.data import DataLoader, Dataset


class SimCLR(pytorch_lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        resnet = torchvision.models.resnet18()
        self.backbone = torch.nn.Sequential(*list(resnet.children())[:-1])
        self.projection_head = SimCLRProjectionHead(input_dim=512, hidden_dim=32, output_dim=8)
        self.criterion = NTXentLoss()
        # Uninitialised memory, and unused without a memory bank; two runs would never be the same in it.
        self.criterion.memory_bank.bank_ptr.zero_()

    def training_step(self, batch: Any, batch_index: int) -> Any:
        x0, x1 = batch[0]
        return self.criterion(self.forward(x0), self.forward(x1))

    def forward(self, x: Any) -> Any:
        return self.projection_head(self.backbone(x).flatten(start_dim=1))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.06)


class Pictures(Dataset):
    """Random pictures, in the views that SimCLR compares."""

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(0)
        self.pixels = torch.randint(0, 256, (12, 40, 40, 3), dtype=torch.uint8, generator=draw)
        self.transform = SimCLRTransform(input_size=32)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Any:
        return self.transform(Image.fromarray(self.pixels[index].numpy())), 0


def fit(run: Run) -> Any:
    model = SimCLR()
    trainer = pytorch_lightning.Trainer(
        max_epochs=run.epochs,
        callbacks=run.callbacks,
        default_root_dir=run.folder,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, DataLoader(Pictures(), batch_size=4, shuffle=True, drop_last=True))
    return trainer


def save_and_load(trainer: Any, folder: Path) -> tuple[Any, Any]:
    trainer.save_checkpoint(folder / "simclr.ckpt")
    loaded = SimCLR.load_from_checkpoint(folder / "simclr.ckpt")
    return embeddings(trainer.model), embeddings(loaded)


@torch.no_grad()
def embeddings(model: Any) -> Any:
    pixels = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return model.eval()(pixels).numpy()


if __name__ == "__main__":
    main(Project("lightly", "SimCLR with a ResNet-18", pytorch_lightning, fit, save_and_load))
