"""Chain-thaw, LP-FT and ULMFiT against traces that are worked out by hand, straight and resumed."""

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from toys import Recorder, StatefulLoader, fit, layer_of, loader, make, trainer, weights

from lightning_freeze import (
    ChainThaw,
    DiscriminativeLR,
    EpochTrigger,
    LinearProbeThenFineTune,
    PlateauTrigger,
    StepTrigger,
    ULMFiT,
)
from lightning_freeze.errors import ConfigurationError
from lightning_freeze.strategies.ulmfit import slanted_triangular

ALL = {"embeddings", "0", "1", "2", "3", "head"}


def run(callback, **options):
    recorder = Recorder()
    fit(make(), callback, recorder, **options)
    return recorder


def test_chain_thaw_trains_the_head_then_each_layer_from_the_input_up_then_all():
    recorder = run(ChainThaw(StepTrigger(2), restore_best=False, verbose=False), max_epochs=4)
    expected = [{"head"}, {"embeddings"}, {"0"}, {"1"}, {"2"}, {"3"}, ALL]
    assert recorder.phases() == [((2 * i // 4, 2 * i), layers) for i, layers in enumerate(expected)]
    assert recorder.rates[0]["classifier.weight"] == 0.1
    for trains, rates in zip(recorder.trains[2:], recorder.rates[2:], strict=True):
        assert all(rate == pytest.approx(0.01) for name, rate in rates.items() if layer_of(name) in trains)


def test_chain_thaw_leaves_the_embeddings_out():
    recorder = run(ChainThaw(StepTrigger(2), layers="0:", restore_best=False, verbose=False), max_epochs=3)
    assert [layers for _, layers in recorder.phases()] == [{"head"}, {"0"}, {"1"}, {"2"}, {"3"}, ALL - {"embeddings"}]


def test_chain_thaw_moves_on_after_five_validations_without_improvement():
    values = [1.0, *[2.0] * 5, 0.5, *[2.0] * 5, 0.0]
    recorder, module = Recorder(), make(values=values)
    thaw = ChainThaw(PlateauTrigger("scripted", patience=4), layers="0", verbose=False)
    fit(module, thaw, recorder, max_epochs=13)
    assert recorder.phases() == [((0, 0), {"head"}), ((6, 24), {"0"}), ((12, 48), {"0", "head"})]
    assert ChainThaw().trigger.patience == 4, "the published code stops at the fifth"


def test_chain_thaw_needs_a_layer_beside_the_head():
    with pytest.raises(ConfigurationError, match="names no layer beside head"):
        run(ChainThaw(StepTrigger(2), layers="head", restore_best=False, verbose=False))


def test_linear_probe_trains_the_head_and_then_everything_at_its_own_rate():
    recorder = run(LinearProbeThenFineTune(EpochTrigger(2), lr=0.5, verbose=False), max_epochs=3)
    assert recorder.phases() == [((0, 0), {"head"}), ((2, 8), ALL)]
    assert recorder.rates[7]["classifier.weight"] == 0.1
    assert recorder.rates[8] == {name: pytest.approx(0.05) for name in recorder.rates[8]}


def test_linear_probe_leaves_the_embeddings_out():
    recorder = run(LinearProbeThenFineTune(fine_tune="0:,head", verbose=False), max_epochs=2)
    assert recorder.phases()[-1][1] == ALL - {"embeddings"}


def test_slanted_triangular_follows_the_paper():
    # T = 100, cut = 10: (1 + p * 31) / 32 with p = t / 10, then 1 - (t - 10) / 90
    assert slanted_triangular(0, 100) == 1 / 32
    assert slanted_triangular(5, 100) == (1 + 0.5 * 31) / 32
    assert slanted_triangular(10, 100) == 1
    assert slanted_triangular(55, 100) == pytest.approx((1 + 0.5 * 31) / 32)
    assert slanted_triangular(100, 100) == pytest.approx(1 / 32)
    assert slanted_triangular(120, 100) == 1 / 32, "a run that is prolonged stays at the lowest rate"


def test_slanted_triangular_falls_until_the_run_ends():
    # T = 19, cut = 1: equation 3 divides by 9 and is at the lowest rate from step 10 on; here T - cut = 18.
    assert slanted_triangular(1, 19) == 1
    assert slanted_triangular(10, 19) == pytest.approx((1 + 0.5 * 31) / 32)
    assert slanted_triangular(18, 19) == pytest.approx((1 + 31 / 18) / 32)
    assert slanted_triangular(19, 19) == pytest.approx(1 / 32)
    assert slanted_triangular(0, 1) == 1 / 32


def test_ulmfit_unfreezes_from_the_top_at_rates_that_fall_with_depth():
    recorder = run(ULMFiT(verbose=False), max_epochs=6)
    order = ["head", "3", "2", "1", "0", "embeddings"]
    assert recorder.phases() == [((i, 4 * i), set(order[: i + 1])) for i in range(6)]
    for step, rates in enumerate(recorder.rates):
        peak = 0.1 * slanted_triangular(step, 24)
        assert rates["classifier.weight"] == pytest.approx(peak)
        if "encoder.layers.2.linear.weight" in rates:
            assert rates["encoder.layers.2.linear.weight"] == pytest.approx(peak / 2.6**2)
    assert recorder.rates[-1]["encoder.embeddings.weight"] == pytest.approx(0.1 * slanted_triangular(23, 24) / 2.6**5)


def test_ulmfit_leaves_the_embeddings_out():
    assert run(ULMFiT(stop="0", verbose=False), max_epochs=5).phases()[-1][1] == ALL - {"embeddings"}


def test_ulmfit_refuses_what_it_cannot_do():
    with pytest.raises(ConfigurationError, match="leave DiscriminativeLR out"):
        fit(make(), ULMFiT(verbose=False), DiscriminativeLR(verbose=False), max_epochs=6)
    with pytest.raises(ConfigurationError, match="needs the length of the run"):
        fit(make(), ULMFiT(verbose=False), max_epochs=-1)
    for wrong in ({"factor": 0.5}, {"ratio": 0.0}, {"cut_frac": 1.0}):
        with pytest.raises(ConfigurationError, match="expected a"):
            ULMFiT(**wrong)


STRATEGIES = {
    "chain-thaw": lambda: ChainThaw(StepTrigger(3), monitor="val_loss", verbose=False),
    "linear probe": lambda: LinearProbeThenFineTune(StepTrigger(5), lr=0.5, warmup_steps=3, verbose=False),
    "ulmfit": lambda: ULMFiT(verbose=False),
}


def adamw(module):
    return torch.optim.AdamW(module.parameters(), lr=0.01, weight_decay=0.1)


@pytest.mark.fast_cases(2, "chain-thaw", "ulmfit")
@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint")
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_resumed_run_equals_the_straight_one_bit_for_bit(name, tmp_path):
    saving = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    straight, whole = make(make_optimizers=adamw), Recorder()
    the_trainer = trainer(STRATEGIES[name](), whole, saving, max_epochs=6, enable_checkpointing=True)
    the_trainer.fit(straight, StatefulLoader(), loader(2, seed=2))
    for step in (2, 3, 7, 12, 20):
        module, recorder = make(9, make_optimizers=adamw), Recorder()
        the_trainer = trainer(STRATEGIES[name](), recorder, max_epochs=6)
        path = tmp_path / f"step={step}.ckpt"
        the_trainer.fit(module, StatefulLoader(), loader(2, seed=2), ckpt_path=path)
        assert recorder.trains == whole.trains[step:], step
        assert recorder.rates == whole.rates[step:], step
        mine, theirs = weights(module), weights(straight)
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs), step
