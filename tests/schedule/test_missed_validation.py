"""The validation that Lightning leaves out on resume is predicted exactly, and run."""

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from toys import Recorder, StatefulLoader, loader, make, trainer, weights

from lightning_freeze import Phase, PhasedFineTuning, PlateauTrigger
from lightning_freeze.schedule.missed_validation import validation_is_due


class Foresight(Callback):
    """Compares, batch by batch, what was foreseen with what Lightning did."""

    def __init__(self):
        self.foreseen, self.validated = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.foreseen.append(validation_is_due(trainer, batch_idx))
        self.validated.append(False)

    def on_validation_end(self, trainer, pl_module):
        self.validated[-1] = True


class Endless:
    """A loader that does not know its length."""

    def __iter__(self):
        return iter(list(loader(5)))


@pytest.mark.fast_cases(7)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"val_check_interval": 0.5},
        {"val_check_interval": 2},
        {"val_check_interval": 3, "check_val_every_n_epoch": None},
        {"check_val_every_n_epoch": 2},
        {"check_val_every_n_epoch": 2, "val_check_interval": 2},
        {"limit_train_batches": 3},
        {"limit_val_batches": 0},
        {"accumulate_grad_batches": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("sized", [True, False])
@pytest.mark.filterwarnings("ignore:.*IterableDataset")
def test_every_validation_is_predicted(options, sized):
    if not sized and isinstance(options.get("val_check_interval"), float):
        pytest.skip("Lightning refuses a fraction of an unknown length")
    foresight = Foresight()
    trainer(foresight, max_epochs=4, **options).fit(make(), loader(5) if sized else Endless(), loader(2, seed=2))
    assert foresight.foreseen == foresight.validated
    assert any(foresight.validated) == (options.get("limit_val_batches") != 0)


class Logs(type(make())):
    def on_validation_epoch_end(self):
        self.log("scripted", float(self.global_step % 7))


def module(seed=0):
    torch.manual_seed(seed)
    return Logs(make_optimizers=lambda m: torch.optim.AdamW(m.parameters(), lr=0.01))


def schedule():
    plateaus = [Phase(layers, PlateauTrigger("scripted", patience=0)) for layers in ("head", "3,head", "2:,head")]
    return PhasedFineTuning([*plateaus, Phase("all")], restore_best=True, monitor="scripted", verbose=False)


class Fault(Callback):
    def __init__(self, at):
        self.at = at

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        if trainer.global_step == self.at and batch_idx == 0 and not trainer.sanity_checking:
            raise RuntimeError("power failure")


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize(("interval", "at"), [(1.0, 4), (1.0, 12), (0.5, 6), (0.5, 8)])
@pytest.mark.parametrize("kept", ["by an exception in the midst of it", "at the batch before it"])
@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint", "ignore:.*.fit.ckpt_path=")
def test_a_failed_validation_is_run_again_completely(interval, at, kept, tmp_path):
    straight, recorder = module(), Recorder()
    plan = schedule()
    trainer(plan, recorder, max_epochs=8, val_check_interval=interval).fit(
        straight, StatefulLoader(), loader(2, seed=2)
    )
    assert plan.phase >= 2

    if kept.startswith("by"):
        saving = OnExceptionCheckpoint(tmp_path, filename="kept")
    else:
        saving = ModelCheckpoint(tmp_path, filename="kept", every_n_train_steps=at, enable_version_counter=False)
    with pytest.raises(RuntimeError, match="power failure"):
        trainer(
            schedule(), Fault(at), saving, max_epochs=8, val_check_interval=interval, enable_checkpointing=True
        ).fit(module(), StatefulLoader(), loader(2, seed=2))
    resumed, again = module(seed=9), Recorder()
    trainer(schedule(), again, max_epochs=8, val_check_interval=interval).fit(
        resumed, StatefulLoader(), loader(2, seed=2), ckpt_path=tmp_path / "kept.ckpt"
    )
    assert again.trains == recorder.trains[at:]
    expected, found = weights(straight), weights(resumed)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint", "ignore:.*reaches the last one")
@pytest.mark.parametrize("interval", [1.0, 0.5])
def test_it_is_held_in_the_epoch_in_which_it_was_due(interval, tmp_path):
    class Epochs(Callback):
        def __init__(self):
            self.seen = []

        def on_validation_end(self, trainer, pl_module):
            self.seen.append((trainer.current_epoch, trainer.global_step))

        def on_train_batch_start(self, trainer, *_):
            self.seen.append(trainer.current_epoch)

    straight, saving = Epochs(), ModelCheckpoint(tmp_path, filename="kept", every_n_train_steps=8, save_top_k=1)
    options = {"max_epochs": 8, "val_check_interval": interval}
    train, validation = StatefulLoader(), loader(2, seed=2)
    trainer(schedule(), straight, saving, enable_checkpointing=True, **options, max_steps=11).fit(
        module(), train, validation
    )
    resumed = Epochs()
    path = tmp_path / "kept.ckpt"
    trainer(schedule(), resumed, **options).fit(module(), StatefulLoader(), validation, ckpt_path=path)
    taken = straight.seen.index((1, 8))
    assert resumed.seen[:3] == straight.seen[taken : taken + 3]
