"""Lightning's learning rate and batch size finders, as callbacks, in mid-run and through ``Tuner``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.tuner import Tuner
from step_rates import StepRates
from torch import nn
from torch.utils.data import DataLoader
from toys import Recorder, Toy, layer_of, loader, moved, trainer, weights

from lightning_freeze import DiscriminativeLR, EpochTrigger, GradualUnfreezing, LayerFreezing, Phase, PhasedFineTuning

EVERYTHING = {"embeddings", "0", "1", "2", "3", "head"}
DEPTHS = {"head": 0, "3": 1, "2": 2, "1": 3, "0": 4, "embeddings": 5}


class Tunable(Toy):
    """Has a learning rate and a batch size to be found, its own data, and notes what trains in each batch."""

    def __init__(self, **options: Any) -> None:
        super().__init__(make_optimizers=lambda m: torch.optim.AdamW(m.parameters(), lr=m.lr), **options)
        self.lr = 0.01
        self.batch_size = 2
        self.tried: list[tuple[int, set[str]]] = []
        self.modes: list[set[str]] = []

    def train_dataloader(self) -> DataLoader:
        return DataLoader(loader(16).dataset, batch_size=self.batch_size)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(loader(2, seed=2).dataset, batch_size=self.batch_size)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.tried.append((len(batch[0]), {layer_of(n) for n, p in self.named_parameters() if p.requires_grad}))
        self.modes.append({str(i) for i, block in enumerate(self.encoder.layers) if not block.dropout.training})


def tunable(**options: Any) -> Tunable:
    torch.manual_seed(0)
    return Tunable(**options)


def callbacks_of(name: str) -> list[Callback]:
    phases = [Phase("head", EpochTrigger(1)), Phase("1:,head", EpochTrigger(1)), Phase("0,head")]
    return {
        "freezing": lambda: [LayerFreezing("embeddings,:2", verbose=False)],
        "gradual": lambda: [GradualUnfreezing(layers_per_phase=3, warmup_steps=3, verbose=False)],
        "phased": lambda: [PhasedFineTuning(phases, verbose=False)],
        "rates": lambda: [DiscriminativeLR(0.5, verbose=False)],
        "all": lambda: [
            DiscriminativeLR(0.5, verbose=False),
            LayerFreezing("embeddings", verbose=False),
            PhasedFineTuning(phases, warmup_steps=2, verbose=False),
        ],
    }[name]()


NAMES = ["freezing", "gradual", "phased", "rates", "all"]


class AtStart(Callback):
    """What the run proper begins with."""

    def on_train_start(self, trainer: Any, pl_module: LightningModule) -> None:
        self.weights = weights(pl_module)
        self.state = {k: dict(v) for k, v in trainer.optimizers[0].state.items()}
        self.clock = (trainer.current_epoch, trainer.global_step)


def run(name: str, finder: Callback | None, module: Tunable) -> tuple[Recorder, AtStart]:
    recorder, start = Recorder(), AtStart()
    finders = [finder] if finder is not None else []
    trainer(*finders, *callbacks_of(name), start, recorder).fit(module)
    return recorder, start


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("name", NAMES)
def test_a_learning_rate_finder_leaves_the_run_as_it_would_be_with_that_rate(name: str, tmp_path: Any) -> None:
    found = tunable()
    finder = LearningRateFinder(num_training_steps=20, early_stop_threshold=None, min_lr=1e-4, max_lr=0.1)
    recorder, start = run(name, finder, found)
    assert finder.optimal_lr is not None
    rate = finder.optimal_lr.suggestion()
    assert found.lr == rate != 0.01
    assert not start.state
    assert start.clock == (0, 0)
    plain = tunable()
    plain.lr = rate
    other, _ = run(name, None, plain)
    assert recorder.trains == other.trains
    assert recorder.rates == other.rates
    left, right = weights(found), weights(plain)
    assert all(torch.equal(left[n], right[n]) for n in left)
    assert all(p.requires_grad for p in found.parameters())
    assert "lr_find" not in vars(finder)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_batch_size_finder_leaves_the_run_as_it_would_be_with_that_size(name: str) -> None:
    found = tunable()
    finder = BatchSizeFinder(init_val=2, max_trials=3, steps_per_trial=2)
    recorder, start = run(name, finder, found)
    assert found.batch_size == finder.optimal_batch_size == 8
    assert not start.state
    assert start.clock == (0, 0)
    plain = tunable()
    plain.batch_size = 8
    other, _ = run(name, None, plain)
    assert recorder.trains == other.trains
    assert recorder.rates == other.rates
    left, right = weights(found), weights(plain)
    assert all(torch.equal(left[n], right[n]) for n in left)
    assert all(p.requires_grad for p in found.parameters())
    assert "scale_batch_size" not in vars(finder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "largest"),
    [
        ("freezing", {"2", "3", "head"}),
        ("gradual", EVERYTHING),
        ("phased", EVERYTHING - {"embeddings"}),
        ("all", EVERYTHING - {"embeddings"}),
    ],
)
def test_a_batch_size_is_measured_with_all_that_ever_trains(name: str, largest: set[str]) -> None:
    module = tunable()
    run(name, BatchSizeFinder(init_val=2, max_trials=2, steps_per_trial=2), module)
    assert [trains for _, trains in module.tried[:4]] == [largest] * 4
    assert module.tried[-1][1] <= largest
    assert {"head"} <= module.tried[4][1]


@pytest.mark.slow
@pytest.mark.parametrize("rate_first", [True, False])
def test_both_finders_in_one_run(rate_first: bool) -> None:
    finders = [
        LearningRateFinder(num_training_steps=20, early_stop_threshold=None, min_lr=1e-4, max_lr=0.1),
        BatchSizeFinder(init_val=2, max_trials=3, steps_per_trial=2),
    ]
    module, recorder = tunable(), Recorder()
    trainer(*(finders if rate_first else reversed(finders)), *callbacks_of("all"), recorder).fit(module)
    assert module.batch_size == 8
    plain = tunable()
    plain.lr, plain.batch_size = module.lr, 8
    other, _ = run("all", None, plain)
    assert (recorder.trains, recorder.rates) == (other.trains, other.rates)
    left, right = weights(module), weights(plain)
    assert all(torch.equal(left[n], right[n]) for n in left)


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("finder", [LearningRateFinder(num_training_steps=5), BatchSizeFinder(max_trials=2)])
def test_frozen_layers_are_in_eval_mode_while_something_is_found(finder: Callback) -> None:
    module = tunable(dropout=0.5)
    run("freezing", finder, module)
    assert module.modes == [{"0", "1"}] * len(module.modes)
    assert all(m.training for m in module.modules())


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_tuner_leaves_the_module_as_it_was(name: str) -> None:
    module = tunable()
    before, keys = weights(module), set(vars(module))
    the_trainer = trainer(*callbacks_of(name))
    tuner = Tuner(the_trainer)
    rate = tuner.lr_find(module, num_training=20, early_stop_threshold=None).suggestion()
    size = tuner.scale_batch_size(module, init_val=2, max_trials=3, steps_per_trial=2)
    assert (module.lr, module.batch_size) == (rate, size)
    assert not moved(before, weights(module))
    assert all(p.requires_grad for p in module.parameters())
    assert all(m.training for m in module.modules())
    assert set(vars(module)) - {"_hparams"} == keys  # made by reading hparams, as the tuner does
    recorder = Recorder()
    the_trainer.callbacks.append(recorder)  # type: ignore[attr-defined]
    the_trainer.fit(module)
    plain = tunable()
    plain.lr, plain.batch_size = rate, size
    other, _ = run(name, None, plain)
    assert (recorder.trains, recorder.rates) == (other.trains, other.rates)


class InMidRun(LearningRateFinder):
    """As Lightning's documentation has it, for fine-tuning: finds a rate at the start of an epoch.

    With Lightning 2.6 it finds one in the first epoch only, with or without other callbacks.
    """

    def __init__(self, epoch: int = 0) -> None:
        super().__init__(num_training_steps=20, early_stop_threshold=None, min_lr=1e-4, max_lr=0.1)
        self.epoch = epoch

    def on_fit_start(self, *args: Any, **kwargs: Any) -> None:
        return

    def on_train_epoch_start(self, trainer: Any, pl_module: LightningModule) -> None:
        if trainer.current_epoch == self.epoch:
            self.lr_find(trainer, pl_module)


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("name", NAMES)
def test_a_rate_found_in_mid_run_is_the_users_rate(name: str) -> None:
    module, recorder = tunable(), Recorder()
    finder = InMidRun()
    trainer(finder, *callbacks_of(name), recorder).fit(module)
    rate = finder.optimal_lr.suggestion()  # type: ignore[union-attr]
    assert rate != 0.01
    factor = 0.5 if name in ("rates", "all") else 1.0
    last = recorder.rates[-1]
    free = {n: r for n, r in last.items() if layer_of(n) == "head"} if name != "rates" else last
    assert free == {n: pytest.approx(rate * factor ** DEPTHS[layer_of(n)]) for n in free}
    plain = tunable()
    other, _ = run(name, None, plain)
    assert recorder.trains == other.trains


@pytest.mark.parametrize("finder", [LearningRateFinder, InMidRun])
def test_rates_are_tried_with_the_factor_of_each_layer(finder: type[LearningRateFinder]) -> None:
    class Rated(Tunable):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            def note(held: dict[nn.Parameter, float]) -> None:
                rates.append({layer_of(n): held[p] for n, p in self.named_parameters()})

            watch.begin(self.trainer.optimizers, note)

    rates: list[dict[str, float]] = []
    watch = StepRates()
    torch.manual_seed(0)
    looking = InMidRun() if finder is InMidRun else finder(1e-4, 0.1, num_training_steps=20, early_stop_threshold=None)
    trainer(looking, DiscriminativeLR(0.5, verbose=False), max_epochs=1).fit(Rated())
    assert looking.optimal_lr is not None
    tried, run_proper = rates[:20], rates[20:]
    # Lightning counts the first two rates alike.
    assert [each["head"] for each in tried[1:]] == pytest.approx(looking.optimal_lr.results["lr"][1:])
    for each in tried:
        assert each == {layer: pytest.approx(each["head"] * 0.5**depth) for layer, depth in DEPTHS.items()}
    suggested = looking.optimal_lr.suggestion()
    assert run_proper == [{layer: pytest.approx(suggested * 0.5**d) for layer, d in DEPTHS.items()}] * len(run_proper)


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("name", NAMES)
def test_a_finder_that_finds_nothing_changes_nothing(name: str) -> None:
    rates, found = [], []
    for finders in ([], [InMidRun(epoch=1)]):
        module, recorder = tunable(), Recorder()
        trainer(*finders, *callbacks_of(name), recorder).fit(module)
        rates.append((recorder.trains, recorder.rates))
        found.append(weights(module))
    assert rates[0] == rates[1]
    assert all(torch.equal(found[0][n], found[1][n]) for n in found[0])


@pytest.mark.slow
def test_a_rate_found_in_mid_run_goes_on_under_the_users_scheduler() -> None:
    def scheduled(module: Any) -> Any:
        optimizer = torch.optim.SGD(module.parameters(), lr=module.lr)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)]

    rates = []
    for callbacks in ([], [DiscriminativeLR(0.5, verbose=False)]):
        module, recorder = tunable(), Recorder()
        module.make_optimizers = scheduled
        finder = InMidRun()
        trainer(finder, *callbacks, recorder, max_epochs=4).fit(module)
        rates.append([r["classifier.weight"] / finder.optimal_lr.suggestion() for r in recorder.rates[-64:]])
    assert rates[0] == pytest.approx(rates[1])
    assert len({round(rate, 9) for rate in rates[0]}) == 2


def test_the_batch_norm_of_frozen_layers_is_not_moved_by_a_finder() -> None:
    module = tunable()
    module.encoder.layers[0].extra = nn.BatchNorm1d(5).double()
    module.encoder.layers[0].register_forward_hook(lambda b, _, output: b.extra(output))
    before = weights(module)
    run("freezing", LearningRateFinder(num_training_steps=5), module)
    assert moved(before, weights(module)) == {"2", "3", "head"}
