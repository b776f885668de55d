import csv
import math
import warnings
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import LearningRateFinder, LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger
from torch.optim import lr_scheduler as schedulers
from toys import Recorder, fit, layer_of, loader, make, moved, trainer, weights
from transformers import get_scheduler
from transformers.optimization import Adafactor, AdafactorSchedule

from lightning_freeze import DiscriminativeLR, EpochTrigger, GradualUnfreezing, LayerFreezing, Phase, PhasedFineTuning
from lightning_freeze.errors import ConfigurationError

DEPTHS = {"head": 0, "3": 1, "2": 2, "1": 3, "0": 4, "embeddings": 5}


def expected_factor(name, decay=0.5):
    return decay ** DEPTHS[layer_of(name)]


def test_rates_decay_from_the_head_down():
    recorder = Recorder()
    fit(make(), DiscriminativeLR(0.5, verbose=False), recorder, max_epochs=1)
    for rates in recorder.rates:
        assert rates == {name: pytest.approx(0.1 * expected_factor(name)) for name in rates}


def test_factors_override_and_later_ones_win():
    recorder = Recorder()
    callback = DiscriminativeLR(0.5, factors={":2": 0.3, "0": 0.2, "head": 10, "embeddings": 0}, verbose=False)
    module = make()
    before = weights(module)
    fit(module, callback, recorder, max_epochs=1)
    factors = {"embeddings": 0, "0": 0.2, "1": 0.3, "2": 0.25, "3": 0.5, "head": 10}
    assert recorder.rates[0] == {name: pytest.approx(0.1 * factors[layer_of(name)]) for name in recorder.rates[0]}
    assert "embeddings" not in moved(before, weights(module))


def groups_of(module):
    named = list(module.named_parameters())
    return [
        {"params": [p for n, p in named if n.endswith("weight")], "lr": 0.1, "weight_decay": 0.1, "name": "decay"},
        {"params": [p for n, p in named if n.endswith("bias")], "lr": 0.2, "name": "no_decay"},
    ]


SCHEDULERS = {
    "LambdaLR": lambda o: schedulers.LambdaLR(o, [lambda s: 1 / (s + 1), lambda s: 0.9**s]),
    "MultiplicativeLR": lambda o: schedulers.MultiplicativeLR(o, lambda s: 0.95),
    "StepLR": lambda o: schedulers.StepLR(o, 3, gamma=0.5),
    "MultiStepLR": lambda o: schedulers.MultiStepLR(o, [2, 5]),
    "ConstantLR": lambda o: schedulers.ConstantLR(o, factor=0.3, total_iters=4),
    "LinearLR": lambda o: schedulers.LinearLR(o, total_iters=6),
    "ExponentialLR": lambda o: schedulers.ExponentialLR(o, 0.9),
    "CosineAnnealingLR": lambda o: schedulers.CosineAnnealingLR(o, 8, eta_min=0.01),
    "CosineAnnealingWarmRestarts": lambda o: schedulers.CosineAnnealingWarmRestarts(o, 3, eta_min=0.01),
    "PolynomialLR": lambda o: schedulers.PolynomialLR(o, 8, power=2),
    "CyclicLR": lambda o: schedulers.CyclicLR(o, base_lr=[0.01, 0.02], max_lr=[0.1, 0.3], step_size_up=3),
    "OneCycleLR": lambda o: schedulers.OneCycleLR(o, max_lr=[0.3, 0.5], total_steps=16),
    "SequentialLR": lambda o: schedulers.SequentialLR(
        o, [schedulers.LinearLR(o, total_iters=4), schedulers.CosineAnnealingLR(o, 8, eta_min=0.01)], milestones=[4]
    ),
    "ChainedScheduler": lambda o: schedulers.ChainedScheduler(
        [schedulers.ConstantLR(o, 0.5, 4), schedulers.ExponentialLR(o, 0.9)], optimizer=o
    ),
    "ReduceLROnPlateau": lambda o: {
        "scheduler": schedulers.ReduceLROnPlateau(o, patience=0, factor=0.5, min_lr=[0.03, 0.01]),
        "monitor": "scripted",
        "interval": "epoch",
    },
    "a user's lambda over one group": lambda o: schedulers.LambdaLR(o, lambda s: 0.5 ** (s // 3)),
    "a user's own scheduler": lambda o: Triangle(o),
    "a warm-up around another one": lambda o: WarmUp(o, schedulers.ExponentialLR(o, 0.9)),
    **{
        f"transformers: {name}": lambda o, name=name, more=more: get_scheduler(name, o, 3, 16, more)
        for name, more in {
            "linear": None,
            "cosine": None,
            "cosine_with_restarts": {"num_cycles": 2},
            "polynomial": {"power": 2.0},
            "constant_with_warmup": None,
            "inverse_sqrt": None,
            "cosine_with_min_lr": {"min_lr_rate": 0.1},
            "cosine_warmup_with_min_lr": {"min_lr_rate": 0.1},
            "warmup_stable_decay": {"num_decay_steps": 5},
        }.items()
    },
}


class Triangle(schedulers.LRScheduler):
    """Steps from the present rate, as users' own schedulers do."""

    def get_lr(self):
        up = self.last_epoch % 6 < 3
        return [group["lr"] * (1.2 if up else 0.8) for group in self.optimizer.param_groups]


class WarmUp(schedulers.LRScheduler):
    """A scheduler of its own kind, around another one, as third parties write them."""

    def __init__(self, optimizer, after):
        self.optimizer, self.after, self.count = optimizer, after, 0
        self.base_lrs = self.targets = [group["lr"] for group in optimizer.param_groups]
        self.step()

    def step(self, metrics=None):
        self.count += 1
        if self.count > 5:
            self.after.step()
            return
        for group, target in zip(self.optimizer.param_groups, self.targets, strict=True):
            group["lr"] = target * self.count / 5

    def state_dict(self):
        return {"count": self.count, "after": self.after.state_dict()}

    def load_state_dict(self, state):
        self.count = state["count"]
        self.after.load_state_dict(state["after"])


@pytest.mark.fast_cases(7)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_rate_is_the_users_rate_times_the_factor_at_every_step(name):
    def optimizers(module):
        optimizer = torch.optim.SGD(groups_of(module), momentum=0.9)
        scheduler = SCHEDULERS[name](optimizer)
        scheduler = scheduler if isinstance(scheduler, dict) else {"scheduler": scheduler, "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def rates(*callbacks):
        recorder = Recorder()
        module = make(make_optimizers=optimizers, values=[1.0] * 9)
        fit(module, *callbacks, recorder, max_epochs=4)
        return recorder.rates

    with warnings.catch_warnings():
        # The one that LambdaLR and others give when they are stepped too early must not appear.
        warnings.filterwarnings("error", message=".*lr_scheduler.step.*")
        users, ours = rates(), rates(DiscriminativeLR(0.5, verbose=False))
    assert len(users) == len(ours) == 16
    for plain, scaled in zip(users, ours, strict=True):
        assert scaled == {n: pytest.approx(r * expected_factor(n), rel=1e-12) for n, r in plain.items()}
    assert len({r["classifier.weight"] for r in users}) > 1


def test_a_decay_of_one_changes_no_bit():
    def optimizers(module):
        optimizer = torch.optim.AdamW(groups_of(module), lr=0.01)
        return [optimizer], [{"scheduler": schedulers.OneCycleLR(optimizer, 0.1, total_steps=12), "interval": "step"}]

    def losses(*callbacks):
        recorder = Recorder()
        fit(make(make_optimizers=optimizers), *callbacks, recorder, gradient_clip_val=0.1)
        return recorder.losses

    plain = losses()
    ours = losses(DiscriminativeLR(1.0, verbose=False), GradualUnfreezing(start="all", verbose=False))
    assert all(torch.equal(left, right) for left, right in zip(plain, ours, strict=True))


def test_the_groups_are_the_users_own_and_the_monitor_shows_their_rates(tmp_path):
    def columns(*callbacks):
        logger = CSVLogger(tmp_path, name=str(len(callbacks)))
        module = make(make_optimizers=lambda m: torch.optim.SGD(groups_of(m)))
        the_trainer = fit(
            module, LearningRateMonitor("step"), *callbacks, max_epochs=6, logger=logger, log_every_n_steps=1
        )
        names = {id(p): n for n, p in module.named_parameters()}
        groups = [
            {**group, "params": [names[id(p)] for p in group["params"]]}
            for group in the_trainer.optimizers[0].param_groups
        ]
        rows = list(csv.DictReader((Path(logger.log_dir) / "metrics.csv").open()))
        return groups, [{name: row[name] for name in row if name.startswith("lr-")} for row in rows]

    plain = columns()
    ours = columns(DiscriminativeLR(0.5, verbose=False), GradualUnfreezing(verbose=False))
    assert ours == plain
    assert plain[1][0].keys() == {"lr-SGD/decay", "lr-SGD/no_decay"}


def test_a_single_group_is_shown_under_the_name_of_the_optimizer(tmp_path):
    logger = CSVLogger(tmp_path)
    callbacks = [LearningRateMonitor("step"), DiscriminativeLR(0.5, verbose=False)]
    module = make(make_optimizers=lambda m: torch.optim.Adam(m.parameters()))
    fit(module, *callbacks, logger=logger, log_every_n_steps=1, max_epochs=1)
    columns = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()[0].split(",")
    assert [name for name in columns if name.startswith("lr-")] == ["lr-Adam"]


def test_together_with_freezing_and_warm_up():
    recorder = Recorder()
    phases = [Phase("head", EpochTrigger(1)), Phase("3,head")]
    callbacks = [
        DiscriminativeLR(0.5, verbose=False),
        LayerFreezing("embeddings", verbose=False),
        PhasedFineTuning(phases, warmup_steps=4, verbose=False),
    ]
    fit(make(), *callbacks, recorder, max_epochs=2)
    third = [rates["encoder.layers.3.linear.weight"] for rates in recorder.rates]
    assert third[4:] == pytest.approx([0.05 / 4, 0.05 / 2, 0.05 * 3 / 4, 0.05])


def test_a_rate_that_is_set_by_hand_in_mid_run_is_the_users_rate():
    class Setting(Recorder):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                trainer.optimizers[0].param_groups[0]["lr"] = 0.777

    recorder = Setting()
    fit(make(), DiscriminativeLR(0.5, verbose=False), recorder)
    third = [rates["encoder.layers.3.linear.weight"] for rates in recorder.rates]
    assert third == pytest.approx([0.05] * 4 + [0.777 / 2] * 8)


def test_rates_that_hooks_compute_from_values_of_the_groups():
    class ByHand(type(make())):
        def configure_optimizers(self):
            groups = [{**group, "scale": index + 1} for index, group in enumerate(groups_of(self))]
            return torch.optim.SGD(groups)

        def on_before_optimizer_step(self, optimizer):
            for group in optimizer.param_groups:
                group["lr"] = 0.01 * group["scale"] * (self.trainer.global_step + 1)

    recorder = Recorder()
    fit(ByHand(), DiscriminativeLR(0.5, verbose=False), recorder)
    assert len(recorder.rates) == 12
    for step, rates in enumerate(recorder.rates, start=1):
        users = {name: 0.01 * step * (1 if name.endswith("weight") else 2) for name in rates}
        assert rates == {name: pytest.approx(users[name] * expected_factor(name)) for name in rates}


@pytest.mark.slow
def test_the_learning_rate_finder_finds_the_users_rate(tmp_path):
    module = make(make_optimizers=lambda m: torch.optim.SGD(m.parameters(), lr=m.lr))
    module.lr = 0.1
    gradual = GradualUnfreezing(verbose=False)
    recorder = Recorder()
    finder = LearningRateFinder(num_training_steps=20, early_stop_threshold=None)
    the_trainer = trainer(
        finder,
        DiscriminativeLR(0.5, verbose=False),
        gradual,
        recorder,
        max_epochs=6,
        tmp_path=tmp_path,
        enable_checkpointing=False,
    )
    the_trainer.fit(module, loader(40), loader(2, seed=2))
    assert module.lr != 0.1
    head = [rates["classifier.weight"] for rates in recorder.rates[-40:]]
    assert head == pytest.approx([module.lr] * 40)
    assert recorder.rates[-1]["encoder.layers.3.linear.weight"] == pytest.approx(module.lr / 2)
    assert [clock for clock, _ in recorder.phases()][-5:] == [(e, 40 * e) for e in range(1, 6)]


def test_tensor_rates_are_not_shared_between_layers():
    module = make(make_optimizers=lambda m: torch.optim.SGD(m.parameters(), lr=torch.tensor(0.1, dtype=torch.float64)))
    recorder = Recorder()
    the_trainer = fit(module, DiscriminativeLR(0.5, verbose=False), recorder, max_epochs=1)
    assert float(the_trainer.optimizers[0].param_groups[0]["lr"]) == 0.1
    assert recorder.rates[-1] == {n: pytest.approx(0.1 * expected_factor(n)) for n in recorder.rates[-1]}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"decay": 0}, "decay=0"),
        ({"decay": -0.5}, "decay=-0.5"),
        ({"decay": math.nan}, "decay=nan"),
        ({"factors": {"head": -1}}, "-1"),
        ({"factors": {"head": math.inf}}, "inf"),
    ],
)
def test_wrong_factors_are_refused(options, words):
    with pytest.raises(ConfigurationError, match=words):
        DiscriminativeLR(**options)


def test_a_factor_for_no_layer_and_two_callbacks_for_one_are_refused():
    with pytest.raises(ConfigurationError, match=r"haed.*Did you mean 'head'"):
        fit(make(), DiscriminativeLR(factors={"haed": 1.0}, verbose=False))
    with pytest.raises(ConfigurationError, match="Two DiscriminativeLR callbacks"):
        fit(make(), DiscriminativeLR(0.9, verbose=False), DiscriminativeLR(0.8, verbose=False))


def test_adafactors_own_relative_step_is_left_to_it():
    def optimizers(module):
        optimizer = Adafactor(module.parameters(), scale_parameter=True, relative_step=True, warmup_init=True, lr=None)
        return [optimizer], [{"scheduler": AdafactorSchedule(optimizer), "interval": "step"}]

    def final(*callbacks):
        module = make(make_optimizers=optimizers)
        fit(module, *callbacks)
        return weights(module)

    plain, ours = final(), final(GradualUnfreezing(start="all", verbose=False))
    assert all(torch.equal(plain[name], ours[name]) for name in plain)
    for callback in (DiscriminativeLR(0.5, verbose=False), GradualUnfreezing(warmup_steps=2, verbose=False)):
        with pytest.raises(ConfigurationError, match=r"Adafactor sets its own learning rate .* relative_step=False"):
            final(callback)


def test_a_warm_up_by_hand_over_all_groups_is_the_users_rate():
    class WarmedUp(type(make())):
        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
            optimizer.step(closure=optimizer_closure)
            for group in optimizer.param_groups:
                group["lr"] = 0.1 * min(1.0, (self.trainer.global_step + 1) / 6)

    recorder = Recorder()
    fit(WarmedUp(), DiscriminativeLR(0.5, verbose=False), recorder)
    assert len(recorder.rates) == 12
    for step, rates in enumerate(recorder.rates):
        users = 0.1 * min(1.0, step / 6) if step else 0.1
        assert rates == {name: pytest.approx(users * expected_factor(name)) for name in rates}


@pytest.mark.parametrize("keep", [lambda s: s, lambda s: [s], lambda s: {"mine": s}], ids=["plain", "list", "dict"])
def test_schedulers_that_a_module_keeps_to_itself_drive_the_users_groups(keep):
    class ByHand(type(make())):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            self.kept = keep(schedulers.LambdaLR(optimizer, lambda step: 0.9**step))
            return optimizer

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()
            kept = self.kept
            (kept[0] if isinstance(kept, list) else kept["mine"] if isinstance(kept, dict) else kept).step()

    module, recorder = ByHand(), Recorder()
    recorder.on_train_batch_end = lambda *_: None
    fit(module, DiscriminativeLR(0.5, verbose=False), GradualUnfreezing(start="all", verbose=False), recorder)
    for step, rates in enumerate(recorder.rates):
        assert rates == {name: pytest.approx(0.1 * 0.9**step * expected_factor(name)) for name in rates}
    assert len(recorder.rates) == 12


def logged_rates(folder):
    rows = list(csv.DictReader((Path(folder) / "metrics.csv").open()))
    rows = [{n: float(v) for n, v in row.items() if n.startswith("lr-") and "/" in n and v} for row in rows]
    return [row for row in rows if row]


def test_the_true_rate_of_each_layer_is_logged(tmp_path):
    def optimizers(module):
        optimizer = torch.optim.AdamW(module.parameters(), lr=0.01)
        return [optimizer], [{"scheduler": schedulers.ExponentialLR(optimizer, 0.9), "interval": "step"}]

    logger, recorder = CSVLogger(tmp_path), Recorder()
    callbacks = [
        PhasedFineTuning([Phase("head", EpochTrigger(1)), Phase("3,head", lr=0.5)], warmup_steps=3, verbose=False),
        DiscriminativeLR(0.5, verbose=False, log_rates=True),
        LearningRateMonitor("step"),
    ]
    fit(make(make_optimizers=optimizers), *callbacks, recorder, logger=logger, log_every_n_steps=2, max_epochs=2)
    rows = logged_rates(logger.log_dir)
    assert [row.keys() for row in rows] == [{f"lr-AdamW/{layer}" for layer in DEPTHS}] * 4
    for row, rates in zip(rows, recorder.rates[1::2], strict=True):
        assert row == {f"lr-AdamW/{layer_of(name)}": rate for name, rate in rates.items()}


def test_rates_are_logged_once_for_accumulated_batches_and_not_unless_asked_for(tmp_path):
    for log_rates, expected in ((True, 3), (False, 0)):
        logger = CSVLogger(tmp_path, name=str(log_rates))
        callback = DiscriminativeLR(0.5, verbose=False, log_rates=log_rates)
        fit(make(), callback, logger=logger, log_every_n_steps=2, accumulate_grad_batches=2)
        assert len(logged_rates(logger.log_dir)) == expected
    fit(make(), DiscriminativeLR(0.5, verbose=False, log_rates=True))  # without a logger


def test_of_several_rates_of_a_layer_the_largest_is_logged_and_the_table_shows_all(tmp_path, capsys):
    logger = CSVLogger(tmp_path)
    module = make(make_optimizers=lambda m: torch.optim.SGD(groups_of(m)))
    fit(module, DiscriminativeLR(0.5, log_rates=True), logger=logger, log_every_n_steps=1, max_epochs=1)
    rows = logged_rates(logger.log_dir)
    expected = {f"lr-SGD/{layer}": pytest.approx(0.2 * 0.5**depth) for layer, depth in DEPTHS.items()}
    assert rows == [{**expected, "lr-SGD/embeddings": pytest.approx(0.1 * 0.5**5)}] * 4
    line = next(line for line in capsys.readouterr().out.splitlines() if line.split()[:1] == ["3"])
    assert "0.05" in line and "0.1" in line


def test_two_optimizers_of_one_class_are_numbered_as_by_the_monitor(tmp_path):
    class Two(type(make())):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def configure_optimizers(self):
            return [
                torch.optim.SGD(self.encoder.parameters(), lr=0.1),
                torch.optim.SGD(self.classifier.parameters(), lr=0.2),
            ]

        def training_step(self, batch, batch_idx):
            self.manual_backward(super().training_step(batch, batch_idx))
            for optimizer in self.optimizers():
                optimizer.step()
                optimizer.zero_grad()

    logger, recorder = CSVLogger(tmp_path), Recorder()
    recorder.on_train_batch_end = lambda *_: None
    callbacks = [LearningRateMonitor("step"), DiscriminativeLR(0.5, verbose=False, log_rates=True)]
    fit(Two(), *callbacks, recorder, logger=logger, log_every_n_steps=1, max_epochs=1)
    rows = logged_rates(logger.log_dir)
    expected = {f"lr-SGD/{layer}": pytest.approx(0.1 * 0.5**d) for layer, d in DEPTHS.items() if layer != "head"}
    assert rows == [{**expected, "lr-SGD-1/head": 0.2}] * 4
    columns = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {name for name in columns if "/" not in name and name.startswith("lr-")} == {"lr-SGD", "lr-SGD-1"}
