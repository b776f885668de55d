"""Synthetic opinions: sequences of good, bad and neutral words, and a word that negates the one after it."""

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

GOOD, BAD, NOT = range(1, 9), range(9, 17), 17
VOCABULARY = 32
LENGTH = 16


def opinions(count: int, seed: int) -> TensorDataset:
    """Draw word sequences, (count, LENGTH), with their label: 1 where more is praised than blamed."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(1, VOCABULARY, (4 * count, LENGTH), generator=generator)
    praise = ((words >= GOOD.start) & (words < GOOD.stop)).int() - ((words >= BAD.start) & (words < BAD.stop)).int()
    negated = torch.zeros_like(praise)
    negated[:, 1:] = (words[:, :-1] == NOT).int()
    balance = (praise * (1 - 2 * negated)).sum(dim=1)
    decided = balance != 0
    return TensorDataset(words[decided][:count], (balance[decided][:count] > 0).long())


class OpinionData(L.LightningDataModule):
    """Training and validation batches of synthetic opinions."""

    def __init__(self, batch_size: int = 32) -> None:
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage: str) -> None:
        self.train = opinions(1024, seed=0)
        self.val = opinions(256, seed=1)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.train, batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.val, batch_size=self.batch_size)
