"""The parameter groups stay the user's: code that reads, writes, saves, indexes or adds to them keeps working."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import BackboneFinetuning, ModelCheckpoint
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR
from toys import Recorder, StatefulLoader, Toy, fit, layer_of, loader, make, moved, trainer, weights

from lightning_freeze import DiscriminativeLR, EpochTrigger, GradualUnfreezing, LayerFreezing, Phase, PhasedFineTuning
from lightning_freeze.errors import ConfigurationError

DEPTHS = {"head": 0, "3": 1, "2": 2, "1": 3, "0": 4, "embeddings": 5}
OURS = {
    "gradual": lambda: [GradualUnfreezing(layers_per_phase=2, warmup_steps=3, verbose=False)],
    "rates": lambda: [DiscriminativeLR(0.5, verbose=False)],
    "both": lambda: [
        GradualUnfreezing(layers_per_phase=2, warmup_steps=3, verbose=False),
        DiscriminativeLR(0.5, verbose=False),
    ],
}


def adamw(module: nn.Module) -> Optimizer:
    return torch.optim.AdamW(module.parameters(), lr=0.01)


class Hooks(Callback):
    """Counts the hooks of the optimizers in the last batch, and looks at their groups."""

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        optimizers = trainer.optimizers
        self.count = sum(len(o._optimizer_step_pre_hooks) + len(o._optimizer_step_post_hooks) for o in optimizers)
        self.groups = [[len(group["params"]) for group in o.param_groups] for o in optimizers]


# ------------------------------------------------------------------------------ what scales nothing


@pytest.mark.parametrize(
    "callback",
    [
        lambda: LayerFreezing("embeddings", verbose=False),
        lambda: GradualUnfreezing(layers_per_phase=3, verbose=False),
        lambda: PhasedFineTuning([Phase("head", EpochTrigger(1)), Phase("all", lr=1)], verbose=False),
        lambda: PhasedFineTuning([Phase("all")], warmup_steps=3, verbose=False),
        lambda: DiscriminativeLR(1.0, verbose=False),
    ],
)
def test_nothing_is_installed_where_no_rate_is_scaled(callback: Any) -> None:
    hooks = Hooks()
    fit(make(make_optimizers=adamw), callback(), hooks)
    assert hooks.count == 0
    assert hooks.groups == [[19]]


def test_something_is_installed_where_rates_are_scaled_and_removed_after_the_fit() -> None:
    hooks = Hooks()
    the_trainer = fit(make(make_optimizers=adamw), *OURS["both"](), hooks, max_epochs=4)
    assert hooks.count > 0
    assert hooks.groups == [[19]]
    hooks.on_train_batch_start(the_trainer)
    assert hooks.count == 0


def test_the_groups_are_the_users_again_as_soon_as_a_step_raises() -> None:
    class Fails(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            super().step(closure)
            assert len(self.param_groups) > 1
            raise RuntimeError("out of memory")

    module, seen = make(make_optimizers=lambda m: Fails(m.parameters(), lr=0.1)), []

    class See(Callback):
        def on_exception(self, trainer: Any, *_: Any) -> None:
            seen.append([len(group["params"]) for group in trainer.optimizers[0].param_groups])

    the_trainer = trainer(See(), DiscriminativeLR(0.5, verbose=False))
    with pytest.raises(RuntimeError, match="out of memory"):
        the_trainer.fit(module, loader())
    assert seen == [[19]]
    assert [len(group["params"]) for group in the_trainer.optimizers[0].param_groups] == [19]


# ------------------------------------------------------------------------------ state in the groups


def prodigy(module: nn.Module) -> Optimizer:
    return pytest.importorskip("prodigyopt").Prodigy(module.parameters(), lr=1.0)


def schedule_free(module: nn.Module) -> Optimizer:
    return pytest.importorskip("schedulefree").AdamWScheduleFree(module.parameters(), lr=0.01, warmup_steps=4)


class TrainMode(Toy):
    """Schedule-free optimizers have a train and an eval mode."""

    def on_train_epoch_start(self) -> None:
        for optimizer in self.trainer.optimizers:
            if hasattr(optimizer, "train"):
                optimizer.train()


def saving_run(tmp_path: Any, *callbacks: Callback, optimizer: Any = adamw, path: Any = None) -> dict[str, Any]:
    torch.manual_seed(0)
    module = TrainMode(make_optimizers=optimizer)
    saving = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=7, save_top_k=-1)
    callbacks = (*callbacks, saving) if path is None else callbacks
    the_trainer = trainer(*callbacks, max_epochs=5, enable_checkpointing=path is None)
    the_trainer.fit(module, StatefulLoader(), ckpt_path=path)
    return weights(module)


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint")
@pytest.mark.parametrize(
    ("optimizer", "names"),
    [(prodigy, ["gradual without a warm-up", "rates of 0 and 1"]), (schedule_free, ["gradual", "rates", "both"])],
)
def test_a_resumed_run_equals_the_straight_one(optimizer: Any, names: list[str], tmp_path: Any) -> None:
    # Prodigy accepts one rate, and 0.
    makers = {
        **OURS,
        "gradual without a warm-up": lambda: [GradualUnfreezing(layers_per_phase=2, verbose=False)],
        "rates of 0 and 1": lambda: [DiscriminativeLR(1.0, factors={":2": 0.0}, verbose=False)],
    }
    for name in names:
        folder = tmp_path / name
        straight = saving_run(folder, *makers[name](), optimizer=optimizer)
        for path in sorted(folder.glob("*.ckpt")):
            resumed = saving_run(folder, *makers[name](), optimizer=optimizer, path=path)
            assert all(torch.equal(straight[n], resumed[n]) for n in straight), (name, path)


def test_different_rates_under_prodigy_are_refused_with_the_names_of_callback_and_optimizer() -> None:
    with pytest.raises(ConfigurationError, match="DiscriminativeLR: Prodigy does not accept a learning rate for each"):
        fit(make(make_optimizers=prodigy), DiscriminativeLR(0.5, verbose=False))


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint")
def test_an_optimizer_with_a_form_of_checkpoints_of_its_own_resumes(tmp_path: Any) -> None:
    class Wrapping(torch.optim.AdamW):
        def state_dict(self) -> Any:
            return {"inner": super().state_dict()}

        def load_state_dict(self, state: Any) -> None:
            super().load_state_dict(state["inner"])

    def optimizer(module: nn.Module) -> Optimizer:
        return Wrapping(module.parameters(), lr=0.01)

    straight = saving_run(tmp_path, *OURS["both"](), optimizer=optimizer)
    resumed = saving_run(tmp_path, *OURS["both"](), optimizer=optimizer, path=tmp_path / "step=7.ckpt")
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


def test_an_optimizer_that_was_saved_with_one_group_for_each_layer_is_refused(tmp_path: Any) -> None:
    saving_run(tmp_path, *OURS["gradual"]())
    checkpoint = torch.load(tmp_path / "step=7.ckpt", weights_only=True)
    (group,) = checkpoint["optimizer_states"][0]["param_groups"]
    checkpoint["optimizer_states"][0]["param_groups"] = [
        {**group, "params": group["params"][:1], "name": "embeddings"},
        {**group, "params": group["params"][1:], "name": "head"},
    ]
    torch.save(checkpoint, tmp_path / "old.ckpt")
    words = r"groups of 1\+18 parameters, those of this run 19: .* one group for each layer\. Resume with"
    with pytest.raises(ConfigurationError, match=words):
        saving_run(tmp_path, *OURS["gradual"](), path=tmp_path / "old.ckpt")


# ------------------------------------------------------------------------------ callbacks added and removed


@pytest.mark.fast_cases(3)
@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint")
@pytest.mark.parametrize("optimizer", [adamw, schedule_free])
@pytest.mark.parametrize("name", OURS)
def test_a_checkpoint_with_callbacks_that_scale_resumes_without_them_and_the_other_way_round(
    name: str, optimizer: Any, tmp_path: Any
) -> None:
    plain, ours = tmp_path / "plain", tmp_path / "ours"
    saving_run(plain, optimizer=optimizer)
    saving_run(ours, *OURS[name](), optimizer=optimizer)
    for folder in (plain, ours):
        saved = torch.load(folder / "step=7.ckpt", weights_only=True)
        assert [len(group["params"]) for group in saved["optimizer_states"][0]["param_groups"]] == [19]
    saving_run(tmp_path, optimizer=optimizer, path=ours / "step=7.ckpt")
    saving_run(tmp_path, *OURS[name](), optimizer=optimizer, path=plain / "step=7.ckpt")


# ------------------------------------------------------------------------------ other owners of the groups


@pytest.mark.parametrize("name", OURS)
def test_the_warm_up_of_pytorch_warmup_is_the_users_rate(name: str) -> None:
    warmup = pytest.importorskip("pytorch_warmup")

    class Dampened(Toy):
        def configure_optimizers(self) -> Any:
            groups = [{"params": self.encoder.parameters()}, {"params": self.classifier.parameters(), "lr": 0.02}]
            optimizer = torch.optim.AdamW(groups, lr=0.01)
            self.warmup = warmup.LinearWarmup(optimizer, warmup_period=6)
            return [optimizer], [{"scheduler": CosineAnnealingLR(optimizer, T_max=24), "interval": "step"}]

        def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
            with self.warmup.dampening():
                scheduler.step()

    def rates(*callbacks: Callback) -> list[dict[str, float]]:
        recorder = Recorder()
        fit(Dampened(), *callbacks, recorder, max_epochs=6)
        return recorder.rates

    users, ours = rates(), rates(*OURS[name]())
    assert len(users) == len(ours) == 24
    factor = 1.0 if name == "gradual" else 0.5
    for step, (plain, scaled) in enumerate(zip(users, ours, strict=True)):
        for parameter, rate in plain.items():
            full = rate * factor ** DEPTHS[layer_of(parameter)]
            if layer_of(parameter) == "head" or name == "rates" or step >= 16:
                assert scaled[parameter] == pytest.approx(full, rel=1e-12)
            else:  # warming up
                assert any(scaled[parameter] == pytest.approx(full * part / 3, rel=1e-12) for part in (1, 2, 3))


class Backbone(Toy):
    @property
    def backbone(self) -> nn.Module:
        return self.encoder

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=0.01)


@pytest.mark.parametrize("ours_first", [True, False])
def test_backbone_finetuning_beside_discriminative_rates(ours_first: bool, tmp_path: Any) -> None:
    def run(*ours: Callback, path: Any = None) -> tuple[dict[str, Any], Recorder]:
        torch.manual_seed(0)
        module, recorder = Backbone(), Recorder()
        theirs = BackboneFinetuning(2, backbone_initial_lr=0.004)
        saving = [ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)] if path is None else []
        callbacks = [*ours, theirs] if ours_first else [theirs, *ours]
        the_trainer = trainer(*callbacks, *saving, recorder, max_epochs=5, enable_checkpointing=path is None)
        the_trainer.fit(module, loader(4), ckpt_path=path)
        return weights(module), recorder

    _, plain = run()
    for path in tmp_path.glob("*.ckpt"):
        path.unlink()
    straight, recorder = run(DiscriminativeLR(0.5, verbose=False))
    assert len(recorder.rates) == 20
    assert recorder.rates == [
        {n: pytest.approx(rate * 0.5 ** DEPTHS[layer_of(n)]) for n, rate in rates.items()} for rates in plain.rates
    ]
    assert len(recorder.rates[-1]) == 19
    resumed, _ = run(DiscriminativeLR(0.5, verbose=False), path=tmp_path / "epoch=1.ckpt")
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    # BackboneFinetuning rebuilds its groups as the fit starts, though with other rates than in the straight run.
    _, later = run(DiscriminativeLR(0.5, verbose=False), path=tmp_path / "epoch=3.ckpt")
    _, theirs = run(path=tmp_path / "epoch=3.ckpt")
    assert later.rates == [
        {n: pytest.approx(rate * 0.5 ** DEPTHS[layer_of(n)]) for n, rate in rates.items()} for rates in theirs.rates
    ]
    assert [len(rates) for rates in later.rates] == [19] * 4


def test_backbone_finetuning_beside_a_freezing_callback_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="GradualUnfreezing and BackboneFinetuning both decide"):
        fit(Backbone(), BackboneFinetuning(1), GradualUnfreezing(verbose=False))


@pytest.mark.parametrize("decay", [0.5, 1.0])
def test_a_group_that_the_module_adds_in_mid_run_is_scaled_from_then_on(decay: float) -> None:
    class Adds(Toy):
        def configure_optimizers(self) -> Any:
            self.encoder.requires_grad_(False)
            return torch.optim.SGD(self.classifier.parameters(), lr=0.1)

        def on_train_epoch_start(self) -> None:
            if self.current_epoch == 1:
                self.encoder.requires_grad_(True)
                self.optimizers().add_param_group({"params": list(self.encoder.parameters()), "lr": 0.02})

    recorder = Recorder()
    the_trainer = fit(Adds(), DiscriminativeLR(decay, verbose=False), recorder)
    assert [len(group["params"]) for group in the_trainer.optimizers[0].param_groups] == [2, 17]
    assert [len(rates) for rates in recorder.rates] == [2] * 4 + [19] * 8
    for name, rate in recorder.rates[-1].items():
        assert rate == pytest.approx((0.1 if layer_of(name) == "head" else 0.02) * decay ** DEPTHS[layer_of(name)])


def test_an_optimizer_that_is_rebuilt_in_mid_run_is_scaled() -> None:
    class Rebuilds(Toy):
        def on_train_epoch_start(self) -> None:
            if self.current_epoch == 1:
                self.trainer.optimizers = [torch.optim.SGD(self.parameters(), lr=0.2)]

    recorder = Recorder()
    fit(Rebuilds(), DiscriminativeLR(0.5, verbose=False), recorder)
    third = [rates["encoder.layers.3.linear.weight"] for rates in recorder.rates]
    assert third == pytest.approx([0.05] * 4 + [0.1] * 8)


class WithUnitGradients(Toy):
    """Changes its optimizer at the start of batch 5, after all callbacks, and notes each layer's displacement."""

    def __init__(self, change: Any, **options: Any) -> None:
        super().__init__(**options)
        self.change = change
        self.rates: list[dict[str, float]] = []

    def on_train_batch_start(self, *_: Any) -> None:
        if self.global_step == 5:
            self.change(self)
        self.before = weights(self)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        for parameter in self.parameters():
            parameter.grad = torch.ones_like(parameter)

    def on_train_batch_end(self, *_: Any) -> None:
        now = dict(self.named_parameters())
        self.rates.append({layer_of(name): float((self.before[name] - p).mean()) for name, p in now.items()})


def add_the_encoder(module: LightningModule) -> None:
    module.optimizers().add_param_group({"params": list(module.encoder.parameters()), "lr": 0.2})


def rebuild(module: LightningModule) -> None:
    head = {"params": module.classifier.parameters(), "lr": 0.1}
    module.trainer.optimizers = [torch.optim.SGD([head, {"params": module.encoder.parameters()}], lr=0.2)]


@pytest.mark.parametrize("change", [add_the_encoder, rebuild])
def test_what_the_module_changes_right_before_a_training_step_is_scaled_in_that_step(change: Any) -> None:
    module = WithUnitGradients(change, make_optimizers=lambda m: torch.optim.SGD(m.classifier.parameters(), lr=0.1))
    fit(module, DiscriminativeLR(0.5, verbose=False))
    assert [rates["head"] for rates in module.rates] == pytest.approx([0.1] * 12)
    for layer, depth in DEPTHS.items():
        if depth > 0:
            expected = [0.0] * 5 + [0.2 * 0.5**depth] * 7
            assert [rates[layer] for rates in module.rates] == pytest.approx(expected)


def phased(**options: Any) -> list[Callback]:
    return [PhasedFineTuning([Phase("head", EpochTrigger(1)), Phase("3,head")], verbose=False, **options)]


class ZerosMissingGradients(Optimizer):
    """Turns a missing gradient into zeros and goes on decaying, as some Muon implementations do."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.mul_(1 - group["lr"] * 0.1).sub_(grad, alpha=group["lr"])
        return loss


@pytest.mark.parametrize(
    ("callbacks", "trained"),
    [
        (lambda: [LayerFreezing("embeddings,:2", verbose=False)], {"2", "3", "head"}),
        (lambda: phased(), {"3", "head"}),
        (lambda: [*phased(warmup_steps=2), DiscriminativeLR(0.5, verbose=False)], {"3", "head"}),
    ],
)
def test_an_optimizer_that_moves_parameters_without_a_gradient_leaves_frozen_ones(callbacks: Any, trained: Any) -> None:
    module = make(make_optimizers=lambda m: ZerosMissingGradients(m.parameters(), lr=0.1))
    before = copy.deepcopy(weights(module))
    fit(module, *callbacks(), max_epochs=2)
    assert moved(before, weights(module)) == trained


def test_an_optimizer_whose_step_runs_no_hooks_is_refused_by_the_name_of_its_class() -> None:
    class Bare(torch.optim.SGD):
        def __init__(self, params: Any) -> None:
            super().__init__(params, lr=0.1)
            self.step = lambda closure=None: closure() if closure else None  # type: ignore[method-assign]

    module = make(make_optimizers=lambda m: Bare(m.parameters()))
    with pytest.raises(ConfigurationError, match=r"DiscriminativeLR: Bare\.step\(\) does not run the hooks"):
        fit(module, DiscriminativeLR(0.5, verbose=False))


# ------------------------------------------------------------------------------ parameters that no optimizer holds


def test_single_parameters_that_no_optimizer_holds_are_named() -> None:
    left_out = ("encoder.layers.2.norm.weight", "encoder.layers.3.linear.bias")

    def optimizers(module: LightningModule) -> Optimizer:
        return torch.optim.SGD([p for n, p in module.named_parameters() if n not in left_out], lr=0.1)

    with pytest.warns(UserWarning, match=f"GradualUnfreezing unfreezes {', '.join(left_out)}, which no optimizer"):
        fit(make(make_optimizers=optimizers), GradualUnfreezing(layers_per_phase=5, verbose=False))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*no optimizer holds.*")
        fit(make(make_optimizers=optimizers), PhasedFineTuning([Phase(":2,head")], verbose=False))
