"""Frozen modules are in eval mode in every training batch of every phase, and only they."""

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from toys import StatefulLoader, layer_of, loader, make, trainer

from lightning_freeze import EpochTrigger, GradualUnfreezing, LayerFreezing, Phase, PhasedFineTuning, StepTrigger

PHASES = [Phase("head", StepTrigger(3)), Phase("2:,head", EpochTrigger(1)), Phase("0:2", EpochTrigger(1)), Phase("all")]


class StochasticDepth(nn.Module):
    def forward(self, x):
        return x * torch.bernoulli(torch.full((len(x), 1, 1), 0.5, dtype=x.dtype)) if self.training else x


def noisy(seed=0):
    """Every block has dropout, stochastic depth and batch normalization."""
    module = make(seed, dropout=0.5)
    for block in module.encoder.layers:
        block.dropout = nn.Sequential(nn.Dropout(0.5), StochasticDepth(), nn.Flatten(0, 1), nn.BatchNorm1d(8))
        block.dropout.append(nn.Unflatten(0, (-1, 5))).double()
    return module


class InForward(Callback):
    """Notes, while a training batch runs, the modules in eval mode and whether their layer is frozen."""

    def __init__(self):
        self.batches = []
        self.handles = []

    def on_train_start(self, trainer, pl_module):
        for name, module in pl_module.encoder.layers.named_modules():
            if name:
                note = self.note(pl_module, name)
                self.handles.append(module.register_forward_hook(note))

    def note(self, pl_module, name):
        layer = name.split(".")[0]

        def hook(module, args, output):
            if pl_module.trainer.training:
                frozen = not any(
                    p.requires_grad for n, p in pl_module.named_parameters() if layer_of(n) == layer and "linear" in n
                )
                self.batches[-1].append((name, module.training, frozen))

        return hook

    def on_train_batch_start(self, *args):
        self.batches.append([])

    def on_train_end(self, *args):
        for handle in self.handles:
            handle.remove()


def run(callback, module, *others, ckpt_path=None, epochs=5, **options):
    seen = InForward()
    the_trainer = trainer(
        callback, seen, *others, max_epochs=epochs, num_sanity_val_steps=1, val_check_interval=2, **options
    )
    the_trainer.fit(module, StatefulLoader(), loader(2, seed=2), ckpt_path=ckpt_path)
    return the_trainer, seen


@pytest.mark.parametrize(
    "callback",
    [
        lambda: PhasedFineTuning(PHASES, verbose=False),
        lambda: GradualUnfreezing(StepTrigger(2), verbose=False),
        lambda: LayerFreezing("embeddings,:2", verbose=False),
    ],
    ids=["phased", "gradual", "static"],
)
def test_what_is_frozen_is_in_eval_mode_and_what_trains_is_not(callback):
    _, seen = run(callback(), noisy())
    assert len(seen.batches) == 20  # with a validation after every second one, and a sanity check
    for batch in seen.batches:
        assert len(batch) > 30
        assert all(training != frozen for _, training, frozen in batch)
    assert any(frozen for batch in seen.batches for _, _, frozen in batch)


@pytest.mark.fast_cases(2)
@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint")
@pytest.mark.parametrize("stop", [2, 3, 4, 6, 9])
def test_after_a_resume_in_mid_epoch_too(stop, tmp_path):
    saving = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    _, straight = run(PhasedFineTuning(PHASES, verbose=False), noisy(), saving, enable_checkpointing=True)
    path = tmp_path / f"step={stop}.ckpt"
    _, seen = run(PhasedFineTuning(PHASES, verbose=False), noisy(seed=3), ckpt_path=path)
    assert seen.batches == straight.batches[stop:]


def test_train_calls_in_every_batch_leave_frozen_modules_in_eval_mode():
    class Eager(type(make())):
        def on_train_batch_start(self, batch, batch_idx):
            assert not self.encoder.layers[0].training

        def on_train_batch_end(self, *args):
            self.train()

    module = noisy()
    module.__class__ = Eager
    _, seen = run(LayerFreezing("embeddings,:2", verbose=False), module)
    assert all(training != frozen for batch in seen.batches for _, training, frozen in batch)


def test_what_the_user_had_set_to_eval_stays_so_when_it_trains():
    module = noisy()
    module.encoder.layers[3].dropout.eval()
    with pytest.warns(UserWarning, match=r"Found 6 module\(s\) in eval mode"):
        _, seen = run(GradualUnfreezing(StepTrigger(2), verbose=False), module)
    for batch in seen.batches:
        for name, training, frozen in batch:
            assert training == (not frozen and not name.startswith("3.dropout")), name
    assert not module.encoder.layers[3].dropout.training
    assert module.encoder.layers[0].dropout.training


def test_statistics_and_weights_of_frozen_layers_stand_still_and_others_do_not():
    module = noisy()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    run(LayerFreezing("embeddings,:2", verbose=False), module)
    for name, value in module.state_dict().items():
        is_frozen = layer_of(name) in ("embeddings", "0", "1")
        assert torch.equal(before[name], value) == is_frozen, name


def test_without_frozen_eval_modes_are_left_alone():
    module = noisy()
    _, seen = run(LayerFreezing("embeddings,:2", frozen_eval=False, verbose=False), module)
    assert all(training for batch in seen.batches for _, training, _ in batch)


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_other_loops_touch_neither_modes_nor_requires_grad(stage):
    module = noisy()
    module.test_step = lambda batch, batch_idx: None
    module.predict_step = lambda batch, batch_idx: module(batch[0])
    module.encoder.layers[1].eval()
    module.encoder.layers[2].requires_grad_(False)

    def state():
        return [m.training for m in module.modules()], [p.requires_grad for p in module.parameters()]

    before = state()
    callbacks = [GradualUnfreezing(verbose=False), LayerFreezing("1", verbose=False)]
    getattr(trainer(*callbacks), stage)(module, loader())
    assert state() == before
    assert "configure_optimizers" not in vars(module)


def test_train_calls_before_the_step_leave_frozen_modules_in_eval_mode():
    class Eager(type(make())):
        def on_train_batch_start(self, batch, batch_idx):
            self.train()

    class Later(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            pl_module.train()

    module = noisy()
    module.__class__ = Eager
    the_trainer, seen = run(LayerFreezing("embeddings,:2", verbose=False), module, Later())
    assert all(training != frozen for batch in seen.batches for _, training, frozen in batch)
    assert "on_train_batch_start" not in vars(the_trainer.strategy)


@pytest.mark.parametrize(
    "callbacks",
    [
        lambda: [LayerFreezing("encoder.embeddings.*,encoder.layers.0.*", verbose=False)],
        lambda: [
            LayerFreezing("embeddings,encoder.layers.0.norm.*,encoder.layers.0.dropout.*", verbose=False),
            LayerFreezing("encoder.layers.0.linear.*", verbose=False),
        ],
    ],
    ids=["by a glob", "by two callbacks together"],
)
def test_a_layer_frozen_parameter_by_parameter_is_still_too(callbacks):
    module = noisy()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    _, seen = run(callbacks()[0], module, *callbacks()[1:])
    for batch in seen.batches:
        assert {name for name, training, _ in batch if not training} == {n for n, *_ in batch if n[0] == "0"}
    for name, value in module.state_dict().items():
        assert torch.equal(before[name], value) == (layer_of(name) in ("embeddings", "0")), name
