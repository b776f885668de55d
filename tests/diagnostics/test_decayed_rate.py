"""Layers that unfreeze when the scheduler has decayed to nothing are named; a rate that rises again is no reason."""

import math

import pytest
import torch
from said import said
from toys import make

from lightning_freeze import DiscriminativeLR, EpochTrigger, GradualUnfreezing, LayerFreezing, Phase, PhasedFineTuning
from lightning_freeze.diagnostics.learning_rates.decayed_rate import has_decayed

DECAYED = "has decayed the learning rate"


def gradual(**options):
    phases = [Phase("head", EpochTrigger(2)), Phase("3,head", EpochTrigger(2)), Phase("all")]
    return PhasedFineTuning(phases, verbose=False, **options)


@pytest.mark.parametrize(
    ("peak", "ahead", "decayed"),
    [
        (0.1, [0.0009], True),
        (0.1, [0.001], False),
        (0.1, [0.0, 0.05], False),
        (0.1, [0.0], True),
        (0.0, [0.0], False),
    ],
)
def test_the_decision(peak, ahead, decayed):
    assert has_decayed(peak, ahead) is decayed


def scheduled(factor, interval="step"):
    """An optimizer whose rate is 0.1 times a function of the calls so far."""

    def make_optimizers(module):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": interval}}

    return make(make_optimizers=make_optimizers)


def test_a_scheduler_that_has_ended():
    (message,) = said(DECAYED, scheduled(lambda step: max(0.0, 1 - step / 12)), gradual(), max_epochs=6)
    assert message == (
        "Phase 3 of 3 unfreezes embeddings, 0 ... 2 at step 16, but the scheduler has decayed the learning rate to 0, "
        "less than 1% of its peak (0.1), and does not raise it again: they will hardly train. Unfreeze earlier, or "
        "use a scheduler that decays later."
    )


def test_an_exponential_decay_by_epochs_is_named_once():
    module = scheduled(lambda epoch: 0.05**epoch, "epoch")
    (message,) = said(DECAYED, module, GradualUnfreezing(verbose=False), max_epochs=6)
    assert message.startswith("Phase 3 of 6 unfreezes 2 at step 8")


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize(
    "factor",
    [
        lambda step: max(0.0, 1 - step / 24),  # to the end of the run
        lambda step: 0.5 * (1 + math.cos(math.pi * step / 24)),
        lambda step: abs(math.cos(math.pi * step / 16)),  # 0 in step 8, and rises again
        lambda step: min(1.0, step / 20),  # a warm-up that is longer than a phase
        lambda step: 1.0,
    ],
)
@pytest.mark.parametrize("others", [[], [DiscriminativeLR(decay=0.05, verbose=False)]])
def test_silent_where_the_layers_will_train(factor, others):
    assert said(DECAYED, scheduled(factor), gradual(), *others, max_epochs=6) == []


def test_silent_with_one_cycle_without_a_scheduler_and_without_a_schedule():
    def one_cycle(module):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=24)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    assert said(DECAYED, make(make_optimizers=one_cycle), GradualUnfreezing(verbose=False), max_epochs=6) == []
    assert said(DECAYED, make(), gradual(warmup_steps=2), max_epochs=6) == []
    freezing = LayerFreezing("embeddings", verbose=False)
    assert said(DECAYED, scheduled(lambda step: 0.5**step), freezing, max_epochs=6) == []


def test_the_schedulers_of_the_run_are_left_alone():
    module = scheduled(lambda step: max(0.0, 1 - step / 12))
    assert said(DECAYED, module, gradual(), max_epochs=6)
    (config,) = module.trainer.lr_scheduler_configs
    assert config.scheduler.last_epoch == 24


def test_a_resumed_run_does_not_repeat_it(tmp_path):
    from lightning.pytorch.callbacks import ModelCheckpoint

    saving = ModelCheckpoint(dirpath=tmp_path, save_last=True)
    options = {"max_epochs": 6, "enable_checkpointing": True}
    assert len(said(DECAYED, scheduled(lambda step: max(0.0, 1 - step / 12)), gradual(), saving, **options)) == 1
    resumed = {"ckpt_path": tmp_path / "last.ckpt", "max_epochs": 8}
    assert said(DECAYED, scheduled(lambda step: max(0.0, 1 - step / 12)), gradual(), **resumed) == []
