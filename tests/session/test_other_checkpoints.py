"""Checkpoints of runs with other callbacks, or with none: restored exactly, or refused with the cause."""

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from toys import Recorder, StatefulLoader, fit, loader, make, trainer, weights

from lightning_freeze import DiscriminativeLR, EpochTrigger, GradualUnfreezing, LayerFreezing, Phase, PhasedFineTuning
from lightning_freeze.errors import ConfigurationError


def two_groups(module):
    decay = [p for p in module.parameters() if p.ndim > 1]
    rest = [p for p in module.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW([{"params": decay, "weight_decay": 0.1}, {"params": rest, "lr": 0.002}], lr=0.01)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, [0.05, 0.02], total_steps=64)
    return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


def run(*callbacks, ckpt_path=None, epochs=4, **options):
    module, recorder = make(make_optimizers=two_groups), Recorder()
    the_trainer = trainer(*callbacks, recorder, max_epochs=epochs, **options)
    the_trainer.fit(module, StatefulLoader(), loader(2, seed=2), ckpt_path=ckpt_path)
    return the_trainer, module, recorder


@pytest.fixture
def plain(tmp_path):
    """A run without any of our callbacks, and its checkpoint at step 7."""
    saving = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=7, save_top_k=-1)
    return *run(saving, enable_checkpointing=True), tmp_path / "step=7.ckpt"


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint")
def test_rates_per_layer_can_be_added_on_resume_and_each_parameter_keeps_its_own_state(plain):
    straight, module, recorder, path = plain
    resumed, other, rates = run(DiscriminativeLR(1.0, verbose=False), ckpt_path=path)
    assert [len(group["params"]) for group in resumed.optimizers[0].param_groups] == [6, 13]  # the user's own
    expected, found = weights(module), weights(other)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert rates.rates == recorder.rates[7:]
    mine, theirs = straight.optimizers[0].state, resumed.optimizers[0].state
    for p, q in zip(module.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine[p]["exp_avg"], theirs[q]["exp_avg"])


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint")
def test_added_factors_apply_from_the_resume_on(plain):
    *_, recorder, path = plain
    _, _, rates = run(DiscriminativeLR(0.5, verbose=False), ckpt_path=path)
    head = {name: rate for name, rate in recorder.rates[7].items() if name.startswith("classifier")}
    assert {name: rates.rates[0][name] for name in head} == head
    low = "encoder.embeddings.weight"
    assert rates.rates[0][low] == recorder.rates[7][low] * 0.5**5


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint")
def test_a_schedule_added_on_resume_begins_there(plain):
    *_, path = plain
    _, _, recorder = run(GradualUnfreezing(verbose=False), ckpt_path=path, epochs=7)
    assert recorder.phases() == [
        ((1, 7), {"head"}),
        ((2, 8), {"3", "head"}),
        ((3, 12), {"2", "3", "head"}),
        ((4, 16), {"1", "2", "3", "head"}),
        ((5, 20), {"0", "1", "2", "3", "head"}),
        ((6, 24), {"embeddings", "0", "1", "2", "3", "head"}),
    ]


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint")
def test_a_static_freeze_can_be_added_and_taken_away(plain, tmp_path):
    *_, path = plain
    before = torch.load(path, weights_only=True)["state_dict"]
    the_trainer, module, _ = run(LayerFreezing("embeddings,:2", verbose=False), ckpt_path=path, epochs=3)
    after = weights(module)
    moved = {name.split(".")[2] for name in before if not torch.equal(before[name], after[name]) if "layers" in name}
    assert moved == {"2", "3"}
    the_trainer.save_checkpoint(tmp_path / "frozen.ckpt")
    _, _, recorder = run(ckpt_path=tmp_path / "frozen.ckpt")
    assert set(map(frozenset, recorder.trains)) == {frozenset({"embeddings", "0", "1", "2", "3", "head"})}


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint")
def test_another_optimizer_is_refused_with_both_layouts(plain):
    *_, path = plain
    with pytest.raises(ConfigurationError, match=r"hold parameter groups of 6\+13 parameters, those of this run 19: "):
        fit(make(), GradualUnfreezing(verbose=False), ckpt_path=path)


def test_a_model_trained_with_the_callbacks_predicts_without_them(tmp_path):
    module = make()
    the_trainer = fit(module, GradualUnfreezing(verbose=False), DiscriminativeLR(verbose=False), max_epochs=6)
    the_trainer.save_checkpoint(tmp_path / "made.ckpt")
    loaded = type(module).load_from_checkpoint(tmp_path / "made.ckpt", weights_only=True)
    assert isinstance(loaded, LightningModule)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), loaded.parameters(), strict=True))
    assert all(p.requires_grad for p in loaded.parameters())


@pytest.fixture
def scaled(tmp_path):
    """A run with rates per layer, and its checkpoint at step 7."""
    saving = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=7, save_top_k=-1)
    return *run(DiscriminativeLR(0.9, verbose=False), saving, enable_checkpointing=True), tmp_path / "step=7.ckpt"


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint")
@pytest.mark.parametrize(
    "callback", [lambda: DiscriminativeLR(0.5, verbose=False), lambda: GradualUnfreezing(verbose=False)]
)
def test_the_users_rate_goes_on_where_it_was_under_other_callbacks(callback, scaled):
    *_, recorder, path = scaled
    _, _, resumed = run(callback(), ckpt_path=path, epochs=8)
    head = {name: rate for name, rate in recorder.rates[7].items() if name.startswith("classifier")}
    assert {name: resumed.rates[0][name] for name in head} == head


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint")
def test_another_kind_of_schedule_goes_on_if_it_agrees_so_far_and_is_refused_otherwise(tmp_path):
    saving = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=7, save_top_k=-1)
    run(GradualUnfreezing(verbose=False), saving, enable_checkpointing=True, epochs=6)
    begun = [Phase("head", EpochTrigger(1)), Phase("3,head", EpochTrigger(1))]
    _, _, recorder = run(PhasedFineTuning([*begun, Phase("all")], verbose=False), ckpt_path=tmp_path / "step=7.ckpt")
    assert recorder.phases() == [((1, 7), {"3", "head"}), ((2, 8), {"embeddings", "0", "1", "2", "3", "head"})]
    other = PhasedFineTuning([Phase("2,head", EpochTrigger(1)), Phase("all")], verbose=False)
    with pytest.raises(ConfigurationError, match="made in phase 2 of another PhasedFineTuning schedule"):
        run(other, ckpt_path=tmp_path / "step=7.ckpt")
