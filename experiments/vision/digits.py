"""Handwritten digits of scikit-learn as a data module of Lightning: nothing in it is of lightning-freeze."""

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, TensorDataset


class Digits(pl.LightningDataModule):
    """Some of the ten digits, 8 x 8 pixels, about 180 images of each.

    Args:
        digits: Which ones; they are the classes.
        train_images: Number of images to train on. 100 more are for validation, the others for the test.
        split_seed: Seed of the split.
        batch_size: Images in a batch.
    """

    def __init__(self, digits: list[int], train_images: int = 50, split_seed: int = 0, batch_size: int = 16) -> None:
        super().__init__()
        self.digits, self.train_images, self.split_seed, self.batch_size = digits, train_images, split_seed, batch_size
        # By these two, the command line tells the model its classes.
        self.labels = [str(digit) for digit in digits]
        self.num_classes = len(digits)

    def setup(self, stage: str) -> None:
        """Read and split the images."""
        from sklearn.datasets import load_digits

        images, targets = load_digits(return_X_y=True)
        known = [row for row, target in enumerate(targets) if target in self.digits]
        pixels = torch.tensor(images[known], dtype=torch.float32).reshape(-1, 1, 8, 8) / 8 - 1
        classes = torch.tensor([self.digits.index(target) for target in targets[known]])
        order = torch.randperm(len(known), generator=torch.Generator().manual_seed(self.split_seed))
        parts = order.split([self.train_images, 100, len(known) - self.train_images - 100])
        self.train, self.val, self.test = (TensorDataset(pixels[part], classes[part]) for part in parts)

    def train_dataloader(self) -> DataLoader:
        """Batches in random order."""
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        """Batches for the choice of the checkpoint."""
        return DataLoader(self.val, 100)

    def test_dataloader(self) -> DataLoader:
        """Batches of the other images."""
        return DataLoader(self.test, 100)
