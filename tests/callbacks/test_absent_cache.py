"""A cache that would save more than half of a step is named; a small, short or random run is silent."""

import warnings

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset
from toys import Toy, loader, trainer

from lightning_freeze import (
    DiscriminativeLR,
    EpochTrigger,
    FrozenPrefixCache,
    GradualUnfreezing,
    LayerFreezing,
    Phase,
    PhasedFineTuning,
)
from lightning_freeze.callbacks.absent_cache import repeats_inputs
from lightning_freeze.diagnostics import cache_gain
from lightning_freeze.diagnostics.cache_gain import FrozenShare, is_worth_a_cache, saving
from lightning_freeze.run_warnings.record import warnings_of


def said(module, *callbacks, data=None, **options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ckpt_path = options.pop("ckpt_path", None)
        the_trainer = trainer(*callbacks, **options)
        the_trainer.fit(module, data or loader(2), loader(1), ckpt_path=ckpt_path)
    shown = [str(w.message) for w in caught if "FrozenPrefixCache()" in str(w.message)]
    assert [w.message for w in warnings_of(the_trainer) if "FrozenPrefixCache()" in w.message] == shown
    return shown


def deep(**options):
    torch.manual_seed(0)
    return Toy(depth=10, **options)


@pytest.fixture
def small(monkeypatch):
    """Toys count as large models; what counts as large is tested by itself."""
    monkeypatch.setattr(cache_gain, "FEWEST_PARAMETERS", 100)


FREEZING = {"layers": "embeddings,:9", "verbose": False}


@pytest.mark.parametrize(("share", "saved"), [(0.0, 0.0), (0.75, 0.5), (1.0, 1.0), (0.5, 0.25)])
def test_what_a_cache_saves(share, saved):
    assert saving(share) == pytest.approx(saved)


@pytest.mark.parametrize(
    ("parameters", "share", "epochs", "worth"),
    [
        (85_000_000, 0.8, 3, True),
        (85_000_000, 0.75, 3, False),
        (85_000_000, 0.8, 2, False),
        (10_600_000, 0.99, 10, False),
    ],
)
def test_the_decision(parameters, share, epochs, worth):
    assert is_worth_a_cache(FrozenShare(9, parameters, share), epochs) is worth


class Large(Toy):
    """22 million frozen parameters."""

    def __init__(self):
        super().__init__(depth=1)
        self.encoder.layers = nn.ModuleList(Wide() for _ in range(6))


class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(8, 260_000, dtype=torch.float64), nn.Linear(260_000, 8, dtype=torch.float64)

    def forward(self, x):
        return x + self.down(torch.tanh(self.up(x)))


@pytest.mark.slow
def test_a_large_model():
    torch.manual_seed(0)
    (message,) = said(Large(), LayerFreezing("embeddings,:5", verbose=False))
    assert message == (
        "The first 5 blocks are frozen, 83% of the model's work, and computed again in each epoch: FrozenPrefixCache() "
        "beside this schedule would save about 62% of the time of a step from the second epoch on."
    )


def test_in_any_phase_that_lasts(small):
    phases = [Phase("head", EpochTrigger(3)), Phase("9,head")]
    assert len(said(deep(), PhasedFineTuning(phases, verbose=False), max_epochs=6)) == 1
    phases = [Phase("head", EpochTrigger(1)), Phase("9,head")]
    (message,) = said(deep(), PhasedFineTuning(phases, verbose=False), max_epochs=6)
    assert message.startswith("The first 9 blocks are frozen")


@pytest.mark.parametrize(
    "callbacks",
    [
        [LayerFreezing(**FREEZING), FrozenPrefixCache(verbose=False)],
        [LayerFreezing("embeddings,:7", verbose=False)],
        [LayerFreezing(":9", verbose=False), DiscriminativeLR(verbose=False)],  # the embeddings train
        [LayerFreezing("75%", verbose=False)],
        [GradualUnfreezing(layers_per_phase=2, verbose=False)],
        [DiscriminativeLR(verbose=False)],
    ],
)
def test_silent_with_the_cache_or_little_to_save(small, callbacks):
    assert said(deep(), *callbacks, max_epochs=6) == []


def test_silent_in_short_runs_and_with_noise(small):
    assert said(deep(), LayerFreezing(**FREEZING), max_epochs=2) == []
    assert said(deep(dropout=0.1), LayerFreezing(**FREEZING, frozen_eval=False)) == []
    assert len(said(deep(dropout=0.1), LayerFreezing(**FREEZING))) == 1


class Noisy(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return torch.randint(0, 16, (5,)), index % 2


@pytest.mark.parametrize(
    ("make", "repeats"),
    [
        (lambda: loader(), True),
        (lambda: DataLoader(Subset(loader().dataset, [0, 1])), True),
        (lambda: DataLoader(loader().dataset + loader().dataset), True),
        (lambda: DataLoader(Noisy()), False),
        (lambda: DataLoader(Subset(Noisy(), [0])), False),
        (lambda: DataLoader(TensorDataset(torch.zeros(2)), collate_fn=lambda rows: torch.rand(2)), False),
        (lambda: [torch.zeros(2)], False),
        (lambda: None, False),
    ],
)
def test_loaders_whose_inputs_repeat(make, repeats):
    assert repeats_inputs(make()) is repeats


def test_silent_where_inputs_may_differ(small):
    assert said(deep(), LayerFreezing(**FREEZING), data=DataLoader(Noisy(), batch_size=4)) == []

    class Augmenting(Toy):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            return batch

    assert said(Augmenting(depth=10), LayerFreezing(**FREEZING)) == []
    assert isinstance(deep(), LightningModule)


def test_a_resumed_run_does_not_repeat_it(small, tmp_path):
    saving_last = ModelCheckpoint(dirpath=tmp_path, save_last=True)
    assert len(said(deep(), LayerFreezing(**FREEZING), saving_last, enable_checkpointing=True)) == 1
    resumed = {"ckpt_path": tmp_path / "last.ckpt", "max_epochs": 9}
    assert said(deep(), LayerFreezing(**FREEZING), **resumed) == []
