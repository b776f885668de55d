"""Correct runs of every callback give no warning of this package, beside finders and sanity checks too."""

import warnings

import pytest
import torch
from lightning.pytorch.callbacks import LearningRateFinder
from torch.utils.data import DataLoader, TensorDataset
from toys import make, trainer

from lightning_freeze import (
    DiscriminativeLR,
    EpochTrigger,
    GradualUnfreezing,
    LayerFreezing,
    Phase,
    PhasedFineTuning,
    PlateauTrigger,
)
from lightning_freeze.run_warnings.record import warnings_of


def cosine(module):
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=128)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


PHASES = [Phase("head", EpochTrigger(2)), Phase("3,head", PlateauTrigger("val_loss") | EpochTrigger(2)), Phase("all")]
CALLBACKS = [
    [LayerFreezing("embeddings,:2", verbose=False)],
    [LayerFreezing("embeddings,:2", verbose=False), DiscriminativeLR(verbose=False)],
    [GradualUnfreezing(verbose=False)],
    [GradualUnfreezing(warmup_steps=2, verbose=False), DiscriminativeLR(verbose=False)],
    [PhasedFineTuning(PHASES, restore_best=True, verbose=False)],
    [DiscriminativeLR(verbose=False)],
]


def learnable(batches, seed):
    """Batches of sequences that say their class: whether their tokens are high on average."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 16, (batches * 4, 5), generator=generator)
    return DataLoader(TensorDataset(tokens, (tokens.double().mean(1) > 7.5).long()), batch_size=4)


@pytest.mark.fast_cases(5)
@pytest.mark.parametrize("callbacks", CALLBACKS)
@pytest.mark.parametrize("sanity", [0, 2])
def test_a_correct_run_has_no_warnings(callbacks, sanity):
    the_trainer = trainer(*callbacks, max_epochs=8, num_sanity_val_steps=sanity)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", module="lightning_freeze")
        the_trainer.fit(make(make_optimizers=cosine), learnable(16, seed=1), learnable(26, seed=2))
    assert warnings_of(the_trainer) == []


def test_rates_that_a_finder_tries_out_are_no_evidence():
    class Found(type(make())):
        lr = 0.01

        def configure_optimizers(self):
            parts = (self.encoder, self.classifier)
            groups = [{"params": p.parameters(), "lr_scale": s} for p, s in zip(parts, (0.5, 1.0), strict=True)]
            optimizer = torch.optim.SGD([{**g, "lr": self.lr * g["lr_scale"]} for g in groups], lr=self.lr)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 48)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

        def train_dataloader(self):
            return learnable(8, seed=1)

        def val_dataloader(self):
            return learnable(26, seed=2)

    torch.manual_seed(0)
    finder = LearningRateFinder(num_training_steps=5, update_attr=False)
    the_trainer = trainer(finder, GradualUnfreezing(verbose=False), max_epochs=6)
    the_trainer.fit(Found())
    assert warnings_of(the_trainer) == []
