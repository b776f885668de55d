"""A small transformer classifier with an optimizer and a schedule of its own."""

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F


class OpinionClassifier(L.LightningModule):
    """Embeds words, mixes them in a transformer encoder and classifies the mean of what comes out."""

    def __init__(self, vocabulary: int, length: int, width: int = 32, depth: int = 4, max_lr: float = 3e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.words = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(length, width)
        block = nn.TransformerEncoderLayer(width, nhead=4, dim_feedforward=2 * width, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(block, depth, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        self.classifier = nn.Linear(width, 2)

    def forward(self, words: Tensor) -> Tensor:
        embedded = self.words(words) + self.positions(torch.arange(words.shape[1], device=words.device))
        return self.classifier(self.encoder(embedded).mean(dim=1))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        words, label = batch
        loss = F.cross_entropy(self(words), label)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        words, label = batch
        logits = self(words)
        self.log("val_loss", F.cross_entropy(logits, label), prog_bar=True)
        self.log("val_accuracy", (logits.argmax(dim=1) == label).float().mean(), prog_bar=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        decayed = [p for p in self.parameters() if p.ndim > 1]
        plain = [p for p in self.parameters() if p.ndim <= 1]
        optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}],
            lr=self.hparams.max_lr,
        )
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=self.hparams.max_lr, total_steps=int(self.trainer.estimated_stepping_batches)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
