"""The accuracy of a test on texts of another domain, beside that on the test texts of the training data."""

from __future__ import annotations

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_freeze import TextDataModule


class OtherDomain(Callback):
    """Measures each test on other data too, with the same weights and the same classes.

    It is logged as ``<name>_accuracy``, beside ``<name>_majority``, what the most frequent class alone would score.

    Args:
        data: A file with the columns of the training data.
        name: What the results are called.
        share: Share of the rows that are used, less than 1. The ``split_seed`` of the training data draws them.
    """

    def __init__(self, data: str, name: str, share: float) -> None:
        self.data, self.name, self.share = data, name, share

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the correct predictions; Lightning has put the module into eval mode and turned gradients off."""
        texts = self._texts(trainer.datamodule)
        correct = rows = 0
        for batch in texts.test_dataloader():
            batch = pl_module.transfer_batch_to_device(batch, pl_module.device, 0)
            labels, _ = batch.pop("labels"), batch.pop("index")
            with trainer.precision_plugin.forward_context():
                predicted = pl_module(**batch).argmax(dim=-1)
            correct, rows = correct + int(torch.sum(predicted == labels)), rows + len(labels)
        pl_module.log_dict({f"{self.name}_accuracy": correct / rows, f"{self.name}_majority": texts.majority})

    def _texts(self, trained_on: TextDataModule) -> TextDataModule:
        texts = TextDataModule(
            tokenizer=trained_on.tokenizer,
            data=self.data,
            split=(1 - self.share, 0.0, self.share),
            split_seed=trained_on.split_seed,
            labels=trained_on.labels,
            batch_size=trained_on.batch_size,
            max_length=trained_on.max_length,
        )
        texts.setup("test")
        return texts
