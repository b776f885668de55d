"""Synthetic vowels as a data module of Lightning: nothing in it is of lightning-freeze.

A vowel is a sum of harmonics of a random pitch, shaped by three resonances. Their frequencies are those that Peterson
and Barney (1952) measured for men, scaled by the random length of a vocal tract. Noise is added.
"""

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

RATE = 8000
LENGTH = 1200
FORMANTS = {
    "heed": (270, 2290, 3010),
    "hid": (390, 1990, 2550),
    "head": (530, 1840, 2480),
    "had": (660, 1720, 2410),
    "hod": (730, 1090, 2440),
    "hawed": (570, 840, 2410),
    "hood": (440, 1020, 2240),
    "whod": (300, 870, 2240),
    "hud": (640, 1190, 2390),
    "heard": (490, 1350, 1690),
}
_BANDWIDTHS = (60.0, 90.0, 150.0)


class Vowels(pl.LightningDataModule):
    """Vowels of some English words, 0.15 seconds each at 8 kHz.

    Args:
        words: Whose vowels, such as ``heed``; they are the classes.
        train_sounds: Number of sounds to train on. 100 more are for validation, 500 for the test.
        split_seed: Seed of the sounds to train on and to validate; those of the test are always the same.
        batch_size: Sounds in a batch.
    """

    def __init__(self, words: list[str], train_sounds: int = 50, split_seed: int = 0, batch_size: int = 16) -> None:
        super().__init__()
        self.train_sounds, self.split_seed, self.batch_size = train_sounds, split_seed, batch_size
        # By these two, the command line tells the model its classes.
        self.labels = words
        self.num_classes = len(words)

    def setup(self, stage: str) -> None:
        """Make the sounds."""
        generator = torch.Generator().manual_seed(self.split_seed)
        self.train = self._sounds(self.train_sounds, generator)
        self.val = self._sounds(100, generator)
        self.test = self._sounds(500, torch.Generator().manual_seed(1_000_000))

    def train_dataloader(self) -> DataLoader:
        """Batches in random order."""
        return DataLoader(self.train, self.batch_size, shuffle=True, collate_fn=_batch)

    def val_dataloader(self) -> DataLoader:
        """Batches for the choice of the checkpoint."""
        return DataLoader(self.val, 100, collate_fn=_batch)

    def test_dataloader(self) -> DataLoader:
        """Batches of the test."""
        return DataLoader(self.test, 100, collate_fn=_batch)

    def _sounds(self, count: int, generator: torch.Generator) -> TensorDataset:
        classes = torch.arange(count) % self.num_classes
        sounds = [vowel(FORMANTS[self.labels[number]], generator) for number in classes.tolist()]
        return TensorDataset(torch.stack(sounds), classes)


def vowel(formants: tuple[float, ...], generator: torch.Generator) -> Tensor:
    """A vowel of a random speaker, of shape (samples,), with mean 0 and standard deviation 1.

    Args:
        formants: Frequencies of the resonances, in Hz.
        generator: Decides pitch, length of the vocal tract, phases and noise.
    """
    pitch, tract, level = torch.rand(3, generator=generator).tolist()
    pitch, tract, level = 90 + 160 * pitch, 0.9 + 0.2 * tract, 0.1 + 0.3 * level
    harmonics = torch.arange(pitch, RATE / 2, pitch)
    gains = 1 / torch.arange(1, len(harmonics) + 1)
    for formant, bandwidth in zip(formants, _BANDWIDTHS, strict=True):
        ratio = harmonics / (formant * tract)
        gains = gains / ((1 - ratio**2) ** 2 + (ratio * bandwidth / formant) ** 2).sqrt()
    phases = 2 * torch.pi * torch.rand(len(harmonics), 1, generator=generator)
    times = torch.arange(LENGTH) / RATE
    sound = (gains[:, None] * torch.cos(2 * torch.pi * harmonics[:, None] * times + phases)).sum(dim=0)
    sound = sound / sound.std() + level * torch.randn(LENGTH, generator=generator)
    return (sound - sound.mean()) / sound.std()


def _batch(samples: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    sounds, classes = zip(*samples, strict=True)
    return {"input_values": torch.stack(sounds), "labels": torch.stack(classes)}
