"""Averaging of weights beside frozen layers and layer-wise rates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, StochasticWeightAveraging, WeightAveraging
from torch import nn
from toys import Recorder, StatefulLoader, Toy, fit, layer_of, loader, make, moved, trainer, weights

from lightning_freeze import DiscriminativeLR, EpochTrigger, GradualUnfreezing, LayerFreezing, Phase, PhasedFineTuning
from lightning_freeze.errors import ConfigurationError

DEPTHS = {"head": 0, "3": 1, "2": 2, "1": 3, "0": 4, "embeddings": 5}


def two_groups(module: nn.Module) -> list[dict[str, Any]]:
    named = list(module.named_parameters())
    return [
        {"params": [p for n, p in named if n.endswith("weight")], "lr": 0.1},
        {"params": [p for n, p in named if n.endswith("bias")], "lr": 0.2},
    ]


def sgd(module: nn.Module) -> Any:
    return torch.optim.SGD(two_groups(module), momentum=0.9)


def scheduled(module: nn.Module) -> Any:
    optimizer = sgd(module)
    return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]


# ------------------------------------------------------------------------------ StochasticWeightAveraging


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("rates", [0.05, [0.05, 0.02]], ids=["one rate", "a rate for each of the user's groups"])
@pytest.mark.parametrize("make_optimizers", [sgd, scheduled])
def test_averaging_brings_each_layer_to_its_factor_of_swa_lrs(make_optimizers: Any, rates: Any) -> None:
    def run(*callbacks: Callback) -> list[dict[str, float]]:
        recorder = Recorder()
        averaging = StochasticWeightAveraging(rates, swa_epoch_start=2, annealing_epochs=2)
        fit(make(make_optimizers=make_optimizers), averaging, *callbacks, recorder, max_epochs=6)
        return recorder.rates

    users, ours = run(), run(DiscriminativeLR(0.5, verbose=False))
    assert len(users) == 24
    for plain, scaled in zip(users, ours, strict=True):
        assert scaled == {n: pytest.approx(r * 0.5 ** DEPTHS[layer_of(n)], rel=1e-12) for n, r in plain.items()}
    assert users[-1]["classifier.weight"] == pytest.approx(0.05)
    assert users[-1]["classifier.bias"] == pytest.approx(0.05 if rates == 0.05 else 0.02)


def test_averaging_under_phases_with_a_warm_up() -> None:
    recorder = Recorder()
    phases = [Phase("head", EpochTrigger(4)), Phase("3,head")]
    averaging = StochasticWeightAveraging(0.05, swa_epoch_start=2, annealing_epochs=1)
    fit(make(), averaging, PhasedFineTuning(phases, warmup_steps=2, verbose=False), recorder, max_epochs=6)
    third = [rates["encoder.layers.3.linear.weight"] for rates in recorder.rates]
    assert third[16:] == pytest.approx([0.025] + [0.05] * 7)


def test_averaged_weights_of_frozen_layers_are_the_given_ones_and_the_mean_is_right() -> None:
    seen: list[dict[str, torch.Tensor]] = []

    class Starts(Callback):
        def on_train_epoch_start(self, trainer: Any, pl_module: LightningModule) -> None:
            seen.append(weights(pl_module))

    module = make()
    before = weights(module)
    averaging = StochasticWeightAveraging(0.05, swa_epoch_start=2)
    fit(module, averaging, LayerFreezing("embeddings,:2", verbose=False), Starts(), max_epochs=6)
    after = weights(module)
    assert moved(before, after) == {"2", "3", "head"}
    # Lightning counts epochs from one here, and averages at their starts.
    for name in after:
        mean = torch.stack([epoch[name] for epoch in seen[1:]]).mean(0)
        assert torch.allclose(after[name], mean, rtol=0, atol=1e-12)


class Normed(Toy):
    """Has a BatchNorm in the first and in the last block."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for block in (self.encoder.layers[0], self.encoder.layers[3]):
            block.extra = nn.BatchNorm1d(5).double()
            block.register_forward_hook(lambda b, _, output: b.extra(output))


@pytest.mark.parametrize(
    "callback",
    [
        LayerFreezing("embeddings,:2", verbose=False),
        PhasedFineTuning([Phase("head", EpochTrigger(1)), Phase("all")], verbose=False),
    ],
    ids=["for the whole run", "in one phase"],
)
def test_frozen_batch_norm_and_a_reset_of_its_statistics_are_refused(callback: Callback) -> None:
    words = r"StochasticWeightAveraging resets .*\(such as encoder\.layers\.0\.extra\).* WeightAveraging instead"
    with pytest.raises(ConfigurationError, match=words):
        fit(Normed(), StochasticWeightAveraging(0.05), callback)


def test_the_ways_out_that_the_refusal_names_work() -> None:
    module = Normed()
    fit(module, StochasticWeightAveraging(0.05), LayerFreezing("embeddings,:2", frozen_eval=False, verbose=False))
    assert module.encoder.layers[0].extra.num_batches_tracked == 4
    fit(Normed(), StochasticWeightAveraging(0.05), LayerFreezing("1", verbose=False))
    module = Normed()
    before = weights(module)
    fit(module, WeightAveraging(), LayerFreezing("embeddings,:2", verbose=False))
    assert moved(before, weights(module)) == {"2", "3", "head"}


def test_averaging_is_the_users_own_after_the_fit() -> None:
    averaging = StochasticWeightAveraging(0.05)
    fit(make(), averaging, DiscriminativeLR(verbose=False))
    assert "on_train_epoch_start" not in vars(averaging)


def test_a_run_resumed_in_the_middle_of_averaging_equals_the_straight_one(tmp_path: Any) -> None:
    def go(path: Any = None) -> Any:
        module, recorder = make(make_optimizers=scheduled), Recorder()
        callbacks = [
            StochasticWeightAveraging([0.05, 0.02], swa_epoch_start=2, annealing_epochs=3),
            DiscriminativeLR(0.5, verbose=False),
            PhasedFineTuning([Phase("head", EpochTrigger(3)), Phase("all")], warmup_steps=6, verbose=False),
        ]
        saving = [ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}")] if path is None else []
        the_trainer = trainer(*callbacks, *saving, recorder, max_epochs=6, enable_checkpointing=path is None)
        the_trainer.fit(module, StatefulLoader(4), loader(2, seed=2), ckpt_path=path)
        return weights(module), recorder

    straight, rates = go()
    for path in sorted(tmp_path.glob("*.ckpt"))[:5]:
        resumed, later = go(path)
        assert rates.rates[-len(later.rates) :] == later.rates, path
        assert all(torch.equal(straight[name], resumed[name]) for name in straight), path


# ------------------------------------------------------------------------- WeightAveraging, EMAWeightAveraging

AVERAGES = {"mean": lambda: WeightAveraging(), "ema": lambda: EMAWeightAveraging(decay=0.9)}


def by_hand(name: str, epochs: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Current and averaged weights of a run that trains the head in its first epoch, the third block too after it."""
    module = make()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    average, count = None, 0
    for epoch in range(epochs):
        for parameter_name, parameter in module.named_parameters():
            parameter.requires_grad_(layer_of(parameter_name) in (("head",) if epoch == 0 else ("3", "head")))
        for tokens, labels in loader(4):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(tokens), labels).backward()
            optimizer.step()
            now = weights(module)
            if average is None:
                average = now
            elif name == "mean":
                average = {n: average[n] + (now[n] - average[n]) / (count + 1) for n in now}
            else:
                average = {n: 0.9 * average[n] + 0.1 * now[n] for n in now}
            count += 1
    assert average is not None
    return weights(module), average


@pytest.mark.parametrize("name", AVERAGES)
def test_the_average_of_a_run_in_phases(name: str) -> None:
    seen: dict[str, Any] = {}

    class Watching(Callback):
        def on_validation_batch_start(self, trainer: Any, pl_module: LightningModule, *_: Any) -> None:
            seen["validated"] = weights(pl_module)
            seen["requires_grad"] = [layer_of(n) for n, p in pl_module.named_parameters() if p.requires_grad]

        def on_train_batch_end(self, trainer: Any, pl_module: LightningModule, *_: Any) -> None:
            seen["trained"] = weights(pl_module)

    module = make()
    before = weights(module)
    phases = [Phase("head", EpochTrigger(1)), Phase("3,head")]
    fit(module, AVERAGES[name](), PhasedFineTuning(phases, verbose=False), Watching())
    current, average = by_hand(name, 3)
    for found, expected in ((seen["trained"], current), (seen["validated"], average), (weights(module), average)):
        assert all(torch.allclose(found[n], expected[n], rtol=0, atol=1e-12) for n in expected)
        assert moved(before, found) == {"3", "head"}
    assert set(seen["requires_grad"]) == {"3", "head"}
    assert all(p.requires_grad for p in module.parameters())


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("name", AVERAGES)
def test_averages_resume_with_phases_rates_and_warm_ups(name: str, tmp_path: Any) -> None:
    def go(path: Any = None) -> Any:
        module, recorder = make(make_optimizers=scheduled), Recorder()
        callbacks = [AVERAGES[name](), GradualUnfreezing(stop="1", warmup_steps=6, verbose=False), recorder]
        saving = [ModelCheckpoint(tmp_path, save_top_k=-1, filename="{step}", every_n_train_steps=3)]
        the_trainer = trainer(
            *callbacks, *(saving if path is None else []), max_epochs=5, enable_checkpointing=path is None
        )
        the_trainer.fit(module, StatefulLoader(4), loader(2, seed=2), ckpt_path=path)
        return weights(module), recorder

    straight, recorded = go()
    paths = sorted(tmp_path.glob("*.ckpt"))
    assert len(paths) == 6
    for path in paths:
        resumed, later = go(path)
        assert recorded.trains[-len(later.trains) :] == later.trains
        assert all(torch.equal(straight[n], resumed[n]) for n in straight), path


@pytest.mark.parametrize("name", AVERAGES)
def test_the_best_weights_of_a_phase_and_averaged_ones_are_refused_together(name: str) -> None:
    callback = GradualUnfreezing(restore_best=True, monitor="val_loss", verbose=False)
    with pytest.raises(
        ConfigurationError, match=r"WeightAveraging validates averaged weights, so GradualUnfreezing.restore_best"
    ):
        fit(make(), AVERAGES[name](), callback)


@pytest.mark.filterwarnings("ignore:.*WeightAveraging callback with a model that overrides")
@pytest.mark.parametrize("averaging_first", [True, False])
def test_a_module_that_is_built_late_is_frozen_and_averaged(averaging_first: bool) -> None:
    class Late(Toy):
        def __init__(self) -> None:
            super().__init__()
            del self.encoder, self.classifier

        def configure_model(self) -> None:
            if not hasattr(self, "encoder"):
                built = make()
                self.encoder, self.classifier = built.encoder, built.classifier

    module, recorder = Late(), Recorder()
    callbacks = [EMAWeightAveraging(decay=0.9), LayerFreezing("embeddings,:2", verbose=False)]
    fit(module, *(callbacks if averaging_first else reversed(callbacks)), recorder)
    assert recorder.trains == [{"2", "3", "head"}] * 12
    assert moved(weights(make()), weights(module)) == {"2", "3", "head"}
