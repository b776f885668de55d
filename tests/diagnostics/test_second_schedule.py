"""A scheduler beside a strategy with a schedule of its own is named; one that changes nothing is not."""

import pytest
import torch
from said import said
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LambdaLR, OneCycleLR, ReduceLROnPlateau
from toys import make

from lightning_freeze import FreezeOut, GradualUnfreezing, ULMFiT
from lightning_freeze.diagnostics.learning_rates.second_schedule import is_constant

SECOND = "moves the learning rates over the whole run"


def scheduled(scheduler, interval="step"):
    def make_optimizers(module):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        settings = {"scheduler": scheduler(optimizer), "interval": interval, "monitor": "train_loss"}
        return {"optimizer": optimizer, "lr_scheduler": settings}

    return make(make_optimizers=make_optimizers)


def test_the_decision():
    assert is_constant([[0.1, 0.2], [0.1, 0.2]])
    assert not is_constant([[0.1, 0.2], [0.1, 0.19]])


def test_the_warning_says_what_to_do():
    module = scheduled(lambda optimizer: LambdaLR(optimizer, lambda step: max(0.0, 1 - step / 24)))
    (message,) = said(SECOND, module, ULMFiT(verbose=False), max_epochs=6)
    assert message == (
        "ULMFiT moves the learning rates over the whole run, and the scheduler, LambdaLR, multiplies with it, so that "
        "layers train at other rates than either means. Expected an optimizer without a scheduler (TransformerModule: "
        "leave lr_scheduler out)."
    )


@pytest.mark.parametrize(
    ("scheduler", "interval"),
    [
        (lambda optimizer: CosineAnnealingLR(optimizer, T_max=24), "step"),
        (lambda optimizer: OneCycleLR(optimizer, max_lr=0.1, total_steps=24), "step"),
        (lambda optimizer: ConstantLR(optimizer, factor=0.5, total_iters=3), "epoch"),
    ],
)
def test_schedulers_that_change_the_rate(scheduler, interval):
    assert len(said(SECOND, scheduled(scheduler, interval), FreezeOut(verbose=False), max_epochs=6)) == 1


@pytest.mark.parametrize(
    ("scheduler", "callback"),
    [
        (lambda optimizer: ConstantLR(optimizer, factor=1.0), FreezeOut(verbose=False)),
        (lambda optimizer: LambdaLR(optimizer, lambda step: 1.0), ULMFiT(verbose=False)),
        (lambda optimizer: ReduceLROnPlateau(optimizer), FreezeOut(verbose=False)),
        (lambda optimizer: CosineAnnealingLR(optimizer, T_max=48), ULMFiT(ratio=1.0, verbose=False)),
        (lambda optimizer: CosineAnnealingLR(optimizer, T_max=48), GradualUnfreezing(verbose=False)),
    ],
)
def test_no_warning_in_a_correct_run(scheduler, callback):
    assert said(SECOND, scheduled(scheduler), callback, max_epochs=6) == []


def test_no_warning_without_a_scheduler():
    assert said(SECOND, make(), FreezeOut(verbose=False), max_epochs=6) == []
