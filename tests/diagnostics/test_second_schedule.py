"""A scheduler beside a strategy with a schedule of its own is named; one that changes nothing is not."""

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from said import said
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LambdaLR,
    MultiStepLR,
    OneCycleLR,
    ReduceLROnPlateau,
    StepLR,
)
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
        "ULMFiT moves the learning rates over the whole run, and a scheduler (LambdaLR) multiplies with it, so that "
        "layers train at other rates than either means. Expected an optimizer without a scheduler (TransformerModule: "
        "leave lr_scheduler out)."
    )


@pytest.mark.parametrize(
    ("scheduler", "interval"),
    [
        (lambda optimizer: CosineAnnealingLR(optimizer, T_max=24), "step"),
        (lambda optimizer: OneCycleLR(optimizer, max_lr=0.1, total_steps=24), "step"),
        (lambda optimizer: ConstantLR(optimizer, factor=0.5, total_iters=3), "epoch"),
        (lambda optimizer: MultiStepLR(optimizer, [1], gamma=0.1), "epoch"),
        (lambda optimizer: StepLR(optimizer, 5, gamma=0.1), "epoch"),
    ],
)
def test_schedulers_that_change_the_rate(scheduler, interval):
    assert len(said(SECOND, scheduled(scheduler, interval), FreezeOut(verbose=False), max_epochs=6)) == 1


def test_a_run_that_ends_after_some_steps():
    module = scheduled(lambda optimizer: StepLR(optimizer, 1, gamma=0.1), "epoch")
    assert len(said(SECOND, module, FreezeOut(verbose=False), max_epochs=-1, max_steps=20)) == 1
    module = scheduled(lambda optimizer: StepLR(optimizer, 6, gamma=0.1), "epoch")
    assert said(SECOND, module, FreezeOut(verbose=False), max_epochs=1000, max_steps=20) == []


def test_a_resumed_run_does_not_repeat_it(tmp_path):
    def module():
        return scheduled(lambda optimizer: CosineAnnealingLR(optimizer, T_max=24))

    saving = ModelCheckpoint(dirpath=tmp_path, save_last=True)
    strategy = FreezeOut(verbose=False)
    assert len(said(SECOND, module(), strategy, saving, max_epochs=3, enable_checkpointing=True)) == 1
    resumed = {"ckpt_path": tmp_path / "last.ckpt", "max_epochs": 6}
    assert said(SECOND, module(), FreezeOut(verbose=False), **resumed) == []


def test_a_schedule_that_is_a_method_of_the_module():
    """Neither copies the module to look ahead, nor loses its trainer."""

    class Scheduled(type(make())):
        def share(self, step):
            return 1 - step / self.trainer.estimated_stepping_batches

        def __deepcopy__(self, memo):
            raise AssertionError("the module was copied")

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            return [optimizer], [{"scheduler": LambdaLR(optimizer, self.share), "interval": "step"}]

    assert len(said(SECOND, Scheduled(), FreezeOut(verbose=False), max_epochs=6)) == 1


@pytest.mark.parametrize(
    ("scheduler", "callback"),
    [
        (lambda optimizer: ConstantLR(optimizer, factor=1.0), FreezeOut(verbose=False)),
        (lambda optimizer: LambdaLR(optimizer, lambda step: 1.0), ULMFiT(verbose=False)),
        (lambda optimizer: ReduceLROnPlateau(optimizer), FreezeOut(verbose=False)),
        (lambda optimizer: LambdaLR(optimizer, lambda step: float(step < 24)), FreezeOut(verbose=False)),
        (lambda optimizer: CosineAnnealingLR(optimizer, T_max=48), ULMFiT(ratio=1.0, verbose=False)),
        (lambda optimizer: CosineAnnealingLR(optimizer, T_max=48), GradualUnfreezing(verbose=False)),
    ],
)
def test_no_warning_in_a_correct_run(scheduler, callback):
    assert said(SECOND, scheduled(scheduler), callback, max_epochs=6) == []


def test_no_warning_without_a_scheduler():
    assert said(SECOND, make(), FreezeOut(verbose=False), max_epochs=6) == []
