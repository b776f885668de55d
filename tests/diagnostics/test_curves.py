"""Too many frozen layers, and overfitting since an unfreeze: decisions, and real fits that are told or are silent."""

import pytest
import said as fits
import torch
from toys import Toy, make

from lightning_freeze import DiscriminativeLR, EpochTrigger, GradualUnfreezing, LayerFreezing, Phase, PhasedFineTuning
from lightning_freeze.diagnostics.curves import LossRecord, overfits_since_unfreeze, plateaus_low
from lightning_freeze.diagnostics.loss_watch import validation_loss

TOO_MANY, OVERFITS = "too many layers may be frozen", "the model overfits"


def said(*arguments, samples=100, **options):
    return fits.said(*arguments, samples=samples, **options)


def records(val, train=None, phases=None):
    train = train or [0.7] * len(val)
    phases = phases or [0] * len(val)
    return [LossRecord(*each) for each in zip(phases, train, val, strict=True)]


FLAT = [0.69, 0.69] + [0.691] * 6


@pytest.mark.parametrize(
    ("val", "train", "first", "share", "low"),
    [
        (FLAT, None, 0.7, 0.8, True),
        (FLAT[:7], None, 0.7, 0.8, False),  # too soon
        (FLAT, None, 0.7, 0.6, False),  # not much is frozen
        (FLAT, None, 1.5, 0.8, False),  # less than half of the first loss: it has learned
        ([0.69, 0.69] + [0.68] * 6, None, 0.7, 0.8, False),  # it still improves
        (FLAT, [0.7, 0.69] + [0.67] * 6, 0.7, 0.8, False),  # training still improves
        (FLAT, [0.5] * 8, 0.7, 0.8, False),  # it overfits
        ([0.0] * 8, [0.0] * 8, 0.0, 0.8, False),
    ],
)
def test_too_many_frozen_layers(val, train, first, share, low):
    assert plateaus_low(records(val, train), first, share) is low


RISING, FALLING = [0.5, 0.52, 0.54, 0.56], [0.5, 0.4, 0.3, 0.2]


@pytest.mark.parametrize(
    ("val", "train", "phases", "phase"),
    [
        (RISING, FALLING, [0, 1, 1, 1], 1),
        (RISING, FALLING, [0, 1, 2, 3], 1),
        ([0.6, *RISING], [0.6, *FALLING], [0, 1, 1, 1, 1], 1),
        ([0.6, 0.6, *RISING], [0.6, 0.6, *FALLING], [0, 1, 1, 1, 1, 1], None),  # long after the unfreeze
        (RISING, FALLING, [1, 1, 1, 1], None),  # whose beginning nobody has seen, as in a resumed run
        (RISING, FALLING, [0, 0, 0, 0], None),
        (RISING, FALLING[::-1], [0, 1, 1, 1], None),
        ([0.5, 0.501, 0.502, 0.503], FALLING, [0, 1, 1, 1], None),
        ([0.5, 0.52, 0.51, 0.56], FALLING, [0, 1, 1, 1], None),
        (RISING, [0.5, 0.499, 0.498, 0.497], [0, 1, 1, 1], None),
        (RISING[:3], FALLING[:3], [0, 1, 1], None),
    ],
)
def test_overfitting_since_an_unfreeze(val, train, phases, phase):
    assert overfits_since_unfreeze(records(val, train, phases)) == phase


@pytest.mark.parametrize(
    ("logged", "found"),
    [
        ({"train_loss": 1.0, "val_loss": 0.5}, ("val_loss", 0.5)),
        ({"val/loss": torch.tensor(0.25)}, ("val/loss", 0.25)),
        ({"Valid-Loss": 0.5}, ("Valid-Loss", 0.5)),
        ({"val_loss": float("nan")}, None),
        ({"val_accuracy": 0.5}, None),
    ],
)
def test_the_name_of_the_validation_loss(logged, found):
    assert validation_loss(logged) == found


class Scripted(Toy):
    """Its losses follow two scripts, one value for each epoch; its gradients are real."""

    def __init__(self, train, val, **options):
        torch.manual_seed(0)
        super().__init__(**options)
        self.train_script, self.val_script = train, val

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * (self.train_script[self.current_epoch] / loss.detach())

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.val_script[self.current_epoch])


FREEZING = {"layers": "embeddings,:3", "verbose": False}


def test_a_plateau_while_much_is_frozen():
    module = Scripted([0.7] * 10, FLAT + [0.691] * 2)
    (message,) = said(TOO_MANY, module, LayerFreezing(**FREEZING), max_epochs=10)
    assert message == (
        "val_loss has not improved for 6 epochs and is still 0.691 (the first training loss was 0.7, the present one "
        "is 0.7), with 75% of the blocks' parameters frozen: too many layers may be frozen. Unfreeze more of them, "
        "from the top down, or raise the learning rate."
    )


def test_few_validation_samples_prove_nothing():
    assert said(TOO_MANY, Scripted([0.7] * 8, FLAT), LayerFreezing(**FREEZING), max_epochs=8, samples=96) == []
    module = Scripted([0.7, 0.5, 0.4, 0.3, 0.2, 0.1], [0.6, 0.62, 0.64, 0.66, 0.68, 0.7])
    phases = [Phase("head", EpochTrigger(1)), Phase("all")]
    assert said(OVERFITS, module, PhasedFineTuning(phases, verbose=False), max_epochs=6, samples=96) == []


def test_a_plateau_with_accumulated_batches():
    module = Scripted([0.7] * 8, FLAT)
    assert len(said(TOO_MANY, module, LayerFreezing(**FREEZING), max_epochs=8, accumulate_grad_batches=2)) == 1


def test_a_plateau_of_a_real_fit():
    class Frozen(Toy):
        """Its blocks ignore the tokens, so that nothing is left to learn from."""

        def forward(self, tokens):
            return self.classifier(self.encoder(torch.zeros_like(tokens)))

        def training_step(self, batch, batch_idx):
            return super().training_step([batch[0], torch.arange(len(batch[0])) % 2], batch_idx)

        def validation_step(self, batch, batch_idx):
            super().validation_step([batch[0], torch.arange(len(batch[0])) % 2], batch_idx)

    torch.manual_seed(0)
    assert len(said(TOO_MANY, Frozen(), LayerFreezing(**FREEZING), max_epochs=10)) == 1


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize(
    ("train", "val", "callback"),
    [
        ([0.7] * 10, FLAT + [0.691] * 2, LayerFreezing("embeddings,:2", verbose=False)),
        ([0.7] * 10, FLAT + [0.691] * 2, GradualUnfreezing(verbose=False)),  # all layers train in the end
        ([0.7] * 10, [0.7 - 0.02 * i for i in range(10)], LayerFreezing(**FREEZING)),
        ([0.7] + [0.2] * 9, [0.2] * 10, LayerFreezing(**FREEZING)),
        ([0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.1, 0.1, 0.1], FLAT + [0.691] * 2, LayerFreezing(**FREEZING)),
        ([0.7] * 10, FLAT + [0.691] * 2, DiscriminativeLR(verbose=False)),
    ],
)
def test_no_plateau_that_unfreezing_would_mend(train, val, callback):
    assert said(TOO_MANY, Scripted(train, val), callback, max_epochs=10) == []


def test_more_is_unfrozen_later():
    phases = [Phase("head", EpochTrigger(9)), Phase("all")]
    module = Scripted([0.7] * 10, FLAT + [0.691] * 2)
    assert said(TOO_MANY, module, PhasedFineTuning(phases, verbose=False), max_epochs=10) == []


def test_overfitting_after_an_unfreeze():
    module = Scripted([0.7, 0.5, 0.4, 0.3, 0.2, 0.1], [0.6, 0.62, 0.64, 0.66, 0.68, 0.7])
    phases = [Phase("head", EpochTrigger(1)), Phase("all")]
    (message,) = said(OVERFITS, module, PhasedFineTuning(phases, verbose=False), max_epochs=6)
    assert message == (
        "Since phase 2 of 2 has unfrozen more layers, the training loss has fallen from 0.7 to 0.3, but val_loss has "
        "risen from 0.6 to 0.66: the model overfits. Lower the rate of the phase (Phase(lr=...), DiscriminativeLR), "
        "unfreeze fewer layers, or stop on val_loss (EarlyStopping, ModelCheckpoint)."
    )


@pytest.mark.parametrize("callback", [LayerFreezing("embeddings", verbose=False), DiscriminativeLR(verbose=False)])
def test_overfitting_without_an_unfreeze_is_not_the_doing_of_freezing(callback):
    module = Scripted([0.7, 0.5, 0.4, 0.3, 0.2, 0.1], [0.6, 0.62, 0.64, 0.66, 0.68, 0.7])
    assert said(OVERFITS, module, callback, max_epochs=6) == []


def test_validation_that_follows_training():
    module = Scripted([0.7, 0.5, 0.4, 0.3, 0.2, 0.1], [0.6, 0.5, 0.52, 0.45, 0.4, 0.41])
    assert said(OVERFITS, module, GradualUnfreezing(verbose=False), max_epochs=6) == []


def test_a_resumed_run_judges_what_it_sees_itself(tmp_path):
    from lightning.pytorch.callbacks import ModelCheckpoint

    def again(**options):
        module = Scripted([0.7] * 4 + [0.6, 0.5, 0.4, 0.3], [0.6] * 4 + [0.62, 0.64, 0.66, 0.68])
        phases = [Phase("head", EpochTrigger(1)), Phase("3,head", EpochTrigger(9)), Phase("all")]
        schedule = PhasedFineTuning(phases, verbose=False)
        saving = ModelCheckpoint(dirpath=tmp_path, save_last=True)
        return said(OVERFITS, module, schedule, saving, enable_checkpointing=True, **options)

    assert again(max_epochs=4) == []
    assert again(max_epochs=8, ckpt_path=tmp_path / "last.ckpt") == []


def test_a_resumed_run_does_not_know_where_it_began(tmp_path):
    from lightning.pytorch.callbacks import ModelCheckpoint

    saving = ModelCheckpoint(dirpath=tmp_path, save_last=True)
    options = {"max_epochs": 8, "enable_checkpointing": True}
    script = [0.7] * 18, FLAT + [0.691] * 10
    assert len(said(TOO_MANY, Scripted(*script), LayerFreezing(**FREEZING), saving, **options)) == 1
    resumed = {"max_epochs": 18, "ckpt_path": tmp_path / "last.ckpt"}
    assert said(TOO_MANY, Scripted(*script), LayerFreezing(**FREEZING), **resumed) == []


def test_silent_under_manual_optimization():
    class Manual(Scripted):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            loss = super().training_step(batch, batch_idx)
            self.manual_backward(loss)
            optimizer.step()
            optimizer.zero_grad()

    assert said(TOO_MANY, Manual([0.7] * 10, FLAT + [0.691] * 2), LayerFreezing(**FREEZING), max_epochs=10) == []


def test_a_toy_that_learns():
    assert said(TOO_MANY, make(), GradualUnfreezing(verbose=False), max_epochs=10) == []
