"""Factors of the learning rates in each phase, within the optimizer's step."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from test_discriminative_lr import SCHEDULERS, groups_of
from toys import Recorder, StatefulLoader, fit, layer_of, loader, make, trainer, weights

from lightning_freeze import DiscriminativeLR, EpochTrigger, Phase, PhasedFineTuning, StepTrigger
from lightning_freeze.errors import ConfigurationError


def schedule(**options: Any) -> PhasedFineTuning:
    phases = [
        Phase("head", EpochTrigger(1), factors={"head": 10}),
        Phase("3,head", StepTrigger(6), lr=0.5, factors={"head": 4, "classifier.bias": 0.0}),
        Phase("all"),
    ]
    return PhasedFineTuning(phases, verbose=False, **options)


def factor(name: str, step: int) -> float:
    if step < 4:
        return 10.0 if layer_of(name) == "head" else 1.0
    if step < 10 and layer_of(name) == "head":
        return 0.0 if name == "classifier.bias" else 2.0
    return 0.5 if step < 10 and layer_of(name) == "3" else 1.0


def warm_up(name: str, step: int, steps: int = 4) -> float:
    begun = {"head": -100, "3": 4}.get(layer_of(name), 10)
    return min(1.0, (step - begun + 1) / steps) if step >= begun else 1.0


@pytest.mark.parametrize("name", ["LambdaLR", "OneCycleLR", "CosineAnnealingLR", "SequentialLR", "ReduceLROnPlateau"])
def test_rates_are_the_users_rates_times_the_factors_of_the_phase_under_a_scheduler(name: str) -> None:
    def optimizers(module: Any) -> Any:
        optimizer = torch.optim.SGD(groups_of(module), momentum=0.9)
        scheduler = SCHEDULERS[name](optimizer)
        scheduler = scheduler if isinstance(scheduler, dict) else {"scheduler": scheduler, "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def rates(*callbacks: Callback) -> list[dict[str, float]]:
        recorder = Recorder()
        fit(make(make_optimizers=optimizers, values=[1.0] * 9), *callbacks, recorder, max_epochs=4)
        return recorder.rates

    users, ours = rates(), rates(schedule(warmup_steps=4))
    assert len(users) == len(ours) == 16
    for step, (plain, scaled) in enumerate(zip(users, ours, strict=True)):
        expected = {n: rate * factor(n, step) * warm_up(n, step) for n, rate in plain.items()}
        assert scaled == {n: pytest.approx(rate, rel=1e-12) for n, rate in expected.items()}, step


def test_factors_of_phases_and_of_layers_are_multiplied() -> None:
    recorder = Recorder()
    fit(make(), schedule(), DiscriminativeLR(factors={"all": 1, "3": 0.1, "head": 0.3}, verbose=False), recorder)
    for step, rates in enumerate(recorder.rates):
        for name, rate in rates.items():
            own = {"3": 0.1, "head": 0.3}.get(layer_of(name), 1.0)
            assert rate == pytest.approx(0.1 * own * factor(name, step))


def test_weights_equal_those_of_a_loop_by_hand() -> None:
    module = make()
    fit(module, PhasedFineTuning([Phase("head", EpochTrigger(1)), Phase("3,head", lr=0.5, factors={"head": 0.1})]))
    plain = make()
    for epoch in range(3):
        for name, parameter in plain.named_parameters():
            parameter.requires_grad_(layer_of(name) == "head" or (layer_of(name) == "3" and epoch > 0))
        head = [p for n, p in plain.named_parameters() if layer_of(n) == "head"]
        third = [p for n, p in plain.named_parameters() if layer_of(n) == "3"]
        rates = (0.1, 0.1) if epoch == 0 else (0.1 * 0.5 * 0.1, 0.1 * 0.5)
        groups = [{"params": head, "lr": rates[0]}, {"params": third, "lr": rates[1]}]
        optimizer = torch.optim.SGD(groups)
        for tokens, labels in loader(4):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(plain(tokens), labels).backward()
            optimizer.step()
    expected, found = weights(plain), weights(module)
    assert all(torch.allclose(expected[n], found[n], rtol=0, atol=1e-14) for n in expected)


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint")
def test_a_run_resumed_in_any_phase_equals_the_straight_one(tmp_path: Any) -> None:
    def optimizers(module: Any) -> Any:
        optimizer = torch.optim.AdamW(module.parameters(), lr=0.01)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=20)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    def go(path: Any = None) -> tuple[dict[str, Any], Recorder]:
        module, recorder = make(make_optimizers=optimizers), Recorder()
        saving = [ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)]
        callbacks = [schedule(warmup_steps=3), recorder, *(saving if path is None else [])]
        the_trainer = trainer(*callbacks, max_epochs=4, enable_checkpointing=path is None)
        the_trainer.fit(module, StatefulLoader(), ckpt_path=path)
        return weights(module), recorder

    straight, recorder = go()
    for step in (3, 4, 5, 7, 10, 11, 15):
        resumed, later = go(tmp_path / f"step={step}.ckpt")
        assert later.rates == recorder.rates[step:]
        assert all(torch.equal(straight[name], resumed[name]) for name in straight), step


def test_the_line_for_a_change_of_phase_names_rates_that_are_not_the_users(capsys: Any) -> None:
    phases = [Phase("head", EpochTrigger(1)), Phase("3,head", EpochTrigger(1), lr=0.5), Phase("all")]
    fit(make(), PhasedFineTuning(phases))
    second, third = [line for line in capsys.readouterr().out.splitlines() if " of 3 trains " in line]
    assert "parameters) at 0.5 x lr until" in second
    assert " lr" not in third


def test_phases_may_differ_in_their_rates_alone() -> None:
    recorder = Recorder()
    phases = [Phase("3,head", EpochTrigger(1)), Phase("3,head", EpochTrigger(1), lr=0.1), Phase("3,head", lr=0)]
    fit(make(), PhasedFineTuning(phases, verbose=False), recorder)
    assert [r["classifier.weight"] for r in recorder.rates] == pytest.approx([0.1] * 4 + [0.01] * 4 + [0.0] * 4)
    with pytest.raises(ConfigurationError, match="Phases 1 and 2 of PhasedFineTuning train the same layers"):
        fit(make(), PhasedFineTuning([Phase("head", EpochTrigger(1), lr=0.5), Phase("head", lr=0.5)], verbose=False))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr": -1}, r"Phase 1 \(head\) has lr=-1; expected a factor"),
        ({"lr": math.nan}, "lr=nan"),
        ({"lr": math.inf}, "lr=inf"),
        ({"lr": True}, "lr=True"),
        ({"lr": "0.5"}, "lr='0.5'"),
        ({"lr": None}, "lr=None"),
        ({"factors": 3}, "factors=3; expected a map"),
        ({"factors": {"head": -0.5}}, "'head': -0.5"),
        ({"factors": {"head": math.inf}}, "'head': inf"),
        ({"factors": {7: 1.0}}, "7: 1.0"),
    ],
)
def test_wrong_rates_are_refused(options: Any, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        PhasedFineTuning([Phase("head", **options)])


def test_a_factor_for_no_layer_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(ConfigurationError, match=r"PhasedFineTuning: .*haed.*Did you mean 'head'"):
        fit(make(), PhasedFineTuning([Phase("head", factors={"haed": 2.0})], verbose=False))


def test_the_words_for_a_phase_show_rates_that_are_not_the_users() -> None:
    until = EpochTrigger(1)
    assert str(Phase("head", until)) == str(Phase("head", until, lr=1, factors={})) == f"head until {until}"
    assert repr(Phase("head", until)) == "Phase(train='head', until=EpochTrigger(1))"
    assert str(Phase("head", until, 0.5, {"head": 10})) == f"head with lr 0.5, factors {{'head': 10}} until {until}"
    assert repr(Phase("head", lr=0.5)) == "Phase(train='head', until=None, lr=0.5)"
    assert hash(Phase("head", factors={"head": 10})) == hash(Phase("head", factors={"head": 10}))
    assert Phase("head", factors={"head": 10}) != Phase("head")


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint")
def test_other_rates_in_a_phase_that_has_begun_are_another_schedule(tmp_path: Any) -> None:
    def phased(rate: float) -> PhasedFineTuning:
        return PhasedFineTuning([Phase("head", EpochTrigger(1), lr=rate), Phase("all")], verbose=False)

    saving = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=3, save_top_k=-1)
    fit(make(), phased(0.5), saving, enable_checkpointing=True)
    with pytest.raises(ConfigurationError, match=r"another PhasedFineTuning schedule.*head with lr 0\.5.*lr 0\.25"):
        fit(make(), phased(0.25), ckpt_path=tmp_path / "step=3.ckpt")
