"""A run that is stopped anywhere and resumed equals the run that was not, bit for bit."""

import warnings

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from toys import Recorder, StatefulLoader, fit, loader, make, trainer, weights

from lightning_freeze import (
    DiscriminativeLR,
    EpochTrigger,
    GradualUnfreezing,
    LayerFreezing,
    Phase,
    PhasedFineTuning,
    PlateauTrigger,
    StepTrigger,
)
from lightning_freeze.errors import ConfigurationError

EPOCHS, BATCHES = 6, 4


def optimizers(module):
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01, weight_decay=0.1)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=EPOCHS * BATCHES)
    return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


class Scripted(type(make())):
    """Logs a value that depends only on how far the run has come, so that it is the same after a resume."""

    script = (3.0, 1.0, 2.0, 2.0, 2.5, 2.5, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05)

    def on_validation_epoch_end(self):
        self.log("scripted", self.script[min(self.global_step // 2, len(self.script) - 1)])


def module(seed=0):
    torch.manual_seed(seed)
    return Scripted(make_optimizers=optimizers, dropout=0.0)


SCHEDULES = {
    "epochs": lambda: [GradualUnfreezing(warmup_steps=3, verbose=False)],
    "steps": lambda: [
        GradualUnfreezing(StepTrigger(3), warmup_steps=5, verbose=False),
        DiscriminativeLR(0.8, verbose=False),
    ],
    "plateau, refreezing, the best weights": lambda: [
        PhasedFineTuning(
            [
                Phase("head", PlateauTrigger("scripted", patience=1)),
                Phase("1:,head", StepTrigger(3)),
                Phase("embeddings,0", EpochTrigger(1)),
                Phase("all"),
            ],
            restore_best=True,
            monitor="scripted",
            warmup_steps=2,
            verbose=False,
        ),
        LayerFreezing("2", verbose=False),
        DiscriminativeLR(0.8, verbose=False),
        EarlyStopping("scripted", patience=3),
    ],
}


def straight(schedule, tmp_path, **options):
    """A run that saves a checkpoint after every step, and after every validation."""
    recorder, the_module = Recorder(), module()
    saving = [
        ModelCheckpoint(tmp_path / "steps", every_n_train_steps=1, save_top_k=-1, filename="{step}"),
        ModelCheckpoint(tmp_path / "validations", save_top_k=-1, monitor="scripted", filename="{step}"),
    ]
    callbacks = [*SCHEDULES[schedule](), recorder]
    the_trainer = trainer(*callbacks, *saving, max_epochs=EPOCHS, enable_checkpointing=True, **options)
    the_trainer.fit(the_module, StatefulLoader(BATCHES), loader(2, seed=2))
    return the_trainer, the_module, recorder


def resumed(schedule, path, **options):
    recorder, the_module = Recorder(), module(seed=9)
    the_trainer = trainer(*SCHEDULES[schedule](), recorder, max_epochs=EPOCHS, **options)
    the_trainer.fit(the_module, StatefulLoader(BATCHES), loader(2, seed=2), ckpt_path=path)
    return the_trainer, the_module, recorder


def assert_equal(left, right):
    (trainer_a, module_a, recorder_a), (trainer_b, module_b, recorder_b) = left, right
    a, b = weights(module_a), weights(module_b)
    assert all(torch.equal(a[name], b[name]) for name in a)
    for x, y in zip(trainer_a.optimizers[0].param_groups, trainer_b.optimizers[0].param_groups, strict=True):
        assert {k: v for k, v in x.items() if k != "params"} == {k: v for k, v in y.items() if k != "params"}
        for p, q in zip(x["params"], y["params"], strict=True):
            mine, theirs = trainer_a.optimizers[0].state.get(p, {}), trainer_b.optimizers[0].state.get(q, {})
            assert mine.keys() == theirs.keys()
            assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    taken = len(recorder_b.trains)
    assert recorder_a.trains[-taken:] == recorder_b.trains
    assert recorder_a.eval_blocks[-taken:] == recorder_b.eval_blocks
    assert recorder_a.rates[-len(recorder_b.rates) :] == recorder_b.rates


@pytest.mark.fast_cases(3)
@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint")  # the ones that saved it
@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.slow)], ids=["some", "all"])
@pytest.mark.parametrize("interval", [1.0, 0.5])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_run_resumed_from_any_checkpoint_equals_the_straight_one(schedule, interval, every, tmp_path):
    run = straight(schedule, tmp_path, val_check_interval=interval)
    checkpoints = sorted(
        tmp_path.glob("*/*.ckpt"), key=lambda p: (p.parent.name, int(p.stem.split("=")[1].split("-")[0]))
    )
    assert len(checkpoints) >= 20
    for path in checkpoints[::every]:
        saved = torch.load(path, weights_only=True)
        if saved["global_step"] < run[0].global_step:
            assert_equal(run, resumed(schedule, path, val_check_interval=interval))


@pytest.mark.filterwarnings("ignore:.*Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize("which", ["best", "last"])
def test_the_same_trainer_goes_on_from_its_best_or_last_checkpoint(which, tmp_path):
    run = straight("steps", tmp_path / "straight")
    saving = ModelCheckpoint(tmp_path, monitor="scripted", mode="max", save_top_k=1, save_last=True)
    recorder, the_module = Recorder(), module()
    the_trainer = trainer(*SCHEDULES["steps"](), recorder, saving, max_epochs=4, enable_checkpointing=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*reaches the last one after")
        the_trainer.fit(the_module, StatefulLoader(BATCHES), loader(2, seed=2))
    path = saving.best_model_path if which == "best" else saving.last_model_path
    taken = torch.load(path, weights_only=True)["global_step"]
    assert taken < EPOCHS * BATCHES
    the_trainer.fit_loop.max_epochs = EPOCHS
    the_trainer.fit(the_module, StatefulLoader(BATCHES), loader(2, seed=2), ckpt_path=which)
    recorder.trains = recorder.trains[16:]
    recorder.eval_blocks = recorder.eval_blocks[16:]
    recorder.rates = recorder.rates[16:]
    assert len(recorder.trains) == EPOCHS * BATCHES - taken
    assert_equal(run, (the_trainer, the_module, recorder))


def test_the_state_in_a_checkpoint_is_plain(tmp_path):
    the_trainer = fit(module(), *SCHEDULES["epochs"](), max_epochs=EPOCHS)
    the_trainer.save_checkpoint(tmp_path / "end.ckpt")
    callbacks = torch.load(tmp_path / "end.ckpt", weights_only=True)["callbacks"]
    (state,) = callbacks.values()
    assert state["phase"] == 5
    assert state["starts"] == [[e, 4 * e] for e in range(6)]


# It trains the embeddings below blocks that stay frozen, which is warned of and does not matter here.
@pytest.mark.filterwarnings("ignore:Phase 4 of 4 of GradualUnfreezing .* below 2 frozen blocks")
def test_a_run_can_be_prolonged_from_a_checkpoint_made_after_the_fit(tmp_path):
    gradual = GradualUnfreezing(verbose=False)
    the_trainer = fit(make(), gradual, LayerFreezing(":2", verbose=False), max_epochs=4)
    the_trainer.save_checkpoint(tmp_path / "end.ckpt")
    again = GradualUnfreezing(verbose=False)
    recorder = Recorder()
    fit(make(), again, LayerFreezing(":2", verbose=False), recorder, max_epochs=6, ckpt_path=tmp_path / "end.ckpt")
    assert recorder.trains == [{"embeddings", "2", "3", "head"}] * 8


def test_later_phases_may_change_and_earlier_ones_may_not(tmp_path):
    def phases(*selectors):
        return [Phase(selector, EpochTrigger(1)) for selector in selectors[:-1]] + [Phase(selectors[-1])]

    class Stopping(Recorder):
        def on_train_batch_end(self, trainer, *_):
            trainer.should_stop = trainer.global_step == 7

    schedule = PhasedFineTuning(phases("head", "2:,head", "all"), verbose=False)
    the_trainer = fit(make(), schedule, Stopping(), max_epochs=3)
    the_trainer.save_checkpoint(tmp_path / "mid.ckpt")
    recorder = Recorder()
    longer = PhasedFineTuning(phases("head", "2:,head", "1:,head", "all"), verbose=False)
    with pytest.warns(UserWarning, match="callbacks used to create the checkpoint"):
        fit(make(), longer, recorder, max_epochs=4, ckpt_path=tmp_path / "mid.ckpt")
    assert [trains for _, trains in recorder.phases()] == [  # the stop had ended the second epoch
        {"1", "2", "3", "head"},
        {"embeddings", "0", "1", "2", "3", "head"},
    ]
    for other in (phases("head", "3,head", "all"), phases("3,head", "all")):
        with (
            pytest.warns(UserWarning, match="callbacks used to create the checkpoint"),
            pytest.raises(ConfigurationError, match="made in phase 2 of another PhasedFineTuning schedule"),
        ):
            fit(make(), PhasedFineTuning(other, verbose=False), max_epochs=4, ckpt_path=tmp_path / "mid.ckpt")


@pytest.mark.filterwarnings("ignore:Phase 1 of 2 .* in no group")
def test_changed_layers_are_refused_at_resume(tmp_path):
    groups = {"low": ["encoder.layers.0"], "high": ["encoder.layers.3"]}
    callback = GradualUnfreezing(start="high", groups=groups, verbose=False)
    the_trainer = fit(make(), callback, max_epochs=2)
    the_trainer.save_checkpoint(tmp_path / "two.ckpt")
    deeper = make(depth=4)
    deeper.encoder.layers[0].more = torch.nn.Linear(8, 8).double()
    state = callback.state_dict()
    fresh = GradualUnfreezing(start="high", groups=groups, verbose=False)

    class Loading(Recorder):
        def on_fit_start(self, trainer, pl_module):
            fresh.load_state_dict(state)

    with pytest.raises(ConfigurationError, match=r"layers of the module have changed .*low"):
        fit(deeper, fresh, Loading(), max_epochs=2)
