"""Optimizers that lose layers in mid-run: the phase that unfreezes them says so, once."""

import warnings

import pytest
import torch
from lightning.pytorch import Callback
from toys import fit, make

from lightning_freeze import EpochTrigger, GradualUnfreezing, Phase, PhasedFineTuning


class Replace(Callback):
    """Replaces the optimizer in the second epoch by one that holds what ``parameters`` returns."""

    def __init__(self, parameters):
        self.parameters = parameters

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            trainer.optimizers = [torch.optim.SGD(self.parameters(pl_module), lr=0.1)]


def said(schedule, *callbacks):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(make(), schedule, *callbacks, max_epochs=6)
    return [str(w.message) for w in caught if "they will not train" in str(w.message)]


def test_layers_that_a_new_optimizer_does_not_hold():
    phases = [Phase("head", EpochTrigger(2)), Phase("3,head", EpochTrigger(2)), Phase("all")]
    schedule = PhasedFineTuning(phases, verbose=False)
    (message,) = said(schedule, Replace(lambda module: module.classifier.parameters()))
    assert message == (
        "PhasedFineTuning unfreezes 3, of which no optimizer holds a parameter: they will not train. Give "
        "configure_optimizers all of self.parameters(), or leave them out of the phases."
    )


@pytest.mark.parametrize(
    "parameters",
    [
        lambda module: module.parameters(),
        lambda module: (p for p in [*module.classifier.parameters(), *module.encoder.parameters()]),
    ],
)
def test_a_new_optimizer_that_holds_everything(parameters):
    assert said(GradualUnfreezing(verbose=False), Replace(parameters)) == []


def test_an_optimizer_that_stays():
    assert said(GradualUnfreezing(verbose=False)) == []
