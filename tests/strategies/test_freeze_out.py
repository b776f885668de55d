"""FreezeOut against the published formula."""

import math

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from toys import Recorder, StatefulLoader, fit, layer_of, loader, make, trainer, weights

from lightning_freeze import FreezeOut
from lightning_freeze.errors import ConfigurationError
from lightning_freeze.strategies.freeze_out import annealed, freezing_time

LAYERS = ["embeddings", "0", "1", "2", "3", "head"]
# (0.8 + 0.2 * i / 5) ** 3 of 24 steps, for each layer: what remains of the run when the layer is frozen.
LAST_STEP = [12, 14, 16, 18, 21, 23]


def adamw(module):
    return torch.optim.AdamW(module.parameters(), lr=0.1, weight_decay=0.1)


def test_times_and_rates_follow_the_paper():
    assert freezing_time(0, 5) == pytest.approx(0.512)
    assert freezing_time(2, 4, t_0=0.5, how_scale="linear") == 0.75
    assert freezing_time(2, 4, t_0=0.5, how_scale="squared") == 0.5625
    assert freezing_time(5, 5) == freezing_time(0, 0) == 1
    assert annealed(0, 0.5) == 2
    assert annealed(0.25, 0.5) == pytest.approx(1)
    assert annealed(0.25, 0.5, scale_lr=False) == pytest.approx(0.5)
    assert annealed(0.5, 0.5) == annealed(0.7, 0.5) == 0


@pytest.mark.parametrize("scale_lr", [True, False])
def test_layers_freeze_from_the_input_up_at_rates_that_fall_to_zero(scale_lr):
    recorder = Recorder()
    fit(make(), FreezeOut(scale_lr=scale_lr, verbose=False), recorder, max_epochs=6)
    for step, (trains, rates) in enumerate(zip(recorder.trains, recorder.rates, strict=True)):
        assert trains == {name for name, last in zip(LAYERS, LAST_STEP, strict=True) if step <= last}, step
        for name, rate in rates.items():
            end = (0.8 + 0.2 * LAYERS.index(layer_of(name)) / 5) ** 3
            expected = 0.1 * 0.5 * (1 + math.cos(math.pi * step / (end * 24))) / (end if scale_lr else 1)
            assert layer_of(name) not in trains or rate == pytest.approx(expected), (step, name)


def test_equals_a_loop_by_hand():
    module, twin = make(make_optimizers=adamw), make(make_optimizers=adamw)
    fit(module, FreezeOut(verbose=False), max_epochs=6)
    parts = [twin.encoder.embeddings, *twin.encoder.layers, twin.classifier]
    optimizer = torch.optim.AdamW([{"params": part.parameters()} for part in parts], lr=0.1, weight_decay=0.1)
    step = 0
    for _ in range(6):
        for tokens, labels in loader(4):
            twin.zero_grad()
            torch.nn.functional.cross_entropy(twin(tokens), labels).backward()
            for depth, (part, group) in enumerate(zip(parts, optimizer.param_groups, strict=True)):
                end = (0.8 + (1 - 0.8) * depth / 5) ** 3
                group["lr"] = 0.1 * ((1 + math.cos(math.pi * min(1.0, step / 24 / end))) / 2 / end)
                if step > LAST_STEP[depth]:
                    part.zero_grad()
            optimizer.step()
            step += 1
    mine, theirs = weights(module), weights(twin)
    assert max(float((mine[name] - theirs[name]).abs().max()) for name in mine) < 1e-12


def test_nothing_freezes_early_with_t_0_of_one():
    recorder = Recorder()
    fit(make(), FreezeOut(t_0=1.0, verbose=False), recorder, max_epochs=3)
    assert recorder.trains == [set(LAYERS)] * 12


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint")
def test_a_resumed_run_equals_the_straight_one_bit_for_bit(tmp_path):
    saving = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    straight, whole = make(make_optimizers=adamw), Recorder()
    the_trainer = trainer(FreezeOut(verbose=False), whole, saving, max_epochs=6, enable_checkpointing=True)
    the_trainer.fit(straight, StatefulLoader(), loader(2, seed=2))
    for step in (1, 12, 13, 14, 21, 23):
        module, recorder = make(9, make_optimizers=adamw), Recorder()
        the_trainer = trainer(FreezeOut(verbose=False), recorder, max_epochs=6)
        the_trainer.fit(module, StatefulLoader(), loader(2, seed=2), ckpt_path=tmp_path / f"step={step}.ckpt")
        assert recorder.trains == whole.trains[step:], step
        mine, theirs = weights(module), weights(straight)
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs), step


def test_the_state_of_what_is_frozen_is_dropped():
    module = make(make_optimizers=adamw)
    the_trainer = fit(module, FreezeOut(verbose=False), max_epochs=6)
    assert {layer_of(n) for n, p in module.named_parameters() if p in the_trainer.optimizers[0].state} == {"head"}


def test_refused():
    for t_0 in (0.0, 1.5):
        with pytest.raises(ConfigurationError, match="above 0 and at most 1"):
            FreezeOut(t_0=t_0)
    with pytest.raises(ConfigurationError, match="needs its length"):
        fit(make(), FreezeOut(verbose=False), max_epochs=-1)
