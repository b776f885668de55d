"""Several optimizers that the module steps itself, as in a GAN."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from compatibility_toys import Gan, gan
from lightning.pytorch import Callback, LightningModule
from torch import nn
from toys import StatefulLoader, loader, trainer, weights

from lightning_freeze import (
    DiscriminativeLR,
    EpochTrigger,
    GradualUnfreezing,
    LayerFreezing,
    Phase,
    PhasedFineTuning,
    StepTrigger,
)
from lightning_freeze.errors import ConfigurationError

PHASES = (
    "generator.head,discriminator.head",
    "generator.head,generator.1,discriminator.head,discriminator.1",
    "generator.head,discriminator",
)
TRAINS = (
    ("generator.out", "discriminator.score"),
    ("generator.out", "generator.layers.1", "discriminator.score", "discriminator.layers.1"),
    ("generator.out", "discriminator.layers"),
)


def phased(trigger: Any = None, **options: Any) -> PhasedFineTuning:
    until = trigger or StepTrigger(4)
    phases = [Phase(PHASES[0], until), Phase(PHASES[1], until), Phase(PHASES[2])]
    return PhasedFineTuning(phases, verbose=False, **options)


def set_phase(module: nn.Module, phase: int) -> None:
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(any(name.startswith(prefix) for prefix in TRAINS[phase]))
        parameter.grad = None


def by_hand(module: Gan, phase_at_step: Any, epochs: int, clip: float | None = None) -> None:
    """The same training with no framework; ``phase_at_step(epoch, step)`` says which phase runs in a batch."""
    optimizers = module.configure_optimizers()
    schedulers: list[Any] = [None, None]
    if isinstance(optimizers, tuple):
        optimizers, schedulers = optimizers
    step, phase = 0, -1
    for epoch in range(epochs):
        for index, (tokens, _) in enumerate(loader(4)):
            if phase_at_step(epoch, step) != phase:
                phase = phase_at_step(epoch, step)
                set_phase(module, phase)
            for name in module.turns(index):
                place = ("discriminator", "generator").index(name)
                optimizers[place].zero_grad()
                module.losses()[name](tokens).backward()
                own = [p for group in optimizers[place].param_groups for p in group["params"]]
                if clip is not None:
                    nn.utils.clip_grad_norm_([p for p in own if p.grad is not None], clip)
                for other in module.parameters():  # what toggling spares
                    if all(other is not p for p in own):
                        other.grad = None
                optimizers[place].step()
                if schedulers[place] is not None:
                    schedulers[place].step()
                step += 1
    for parameter in module.parameters():
        parameter.requires_grad_(True)


def assert_same(left: nn.Module, right: nn.Module) -> None:
    one, two = weights(left), weights(right)
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


@pytest.mark.parametrize("options", [{}, {"every": 3}, {"schedules": True}, {"clip": 0.01}], ids=str)
def test_a_gan_equals_the_same_training_by_hand(options: dict[str, Any]) -> None:
    module, plain = gan(**options), gan(**options)
    callback = phased()
    trainer(callback, max_epochs=4).fit(module, loader(4))
    starts = [clock.step for clock in callback.schedule.progress.starts]
    by_hand(plain, lambda _, step: sum(step >= begin for begin in starts) - 1, 4, options.get("clip"))
    assert_same(module, plain)
    assert starts[0] == 0
    assert len(starts) == 3


def test_epochs_and_steps_count_as_the_trainer_counts_them() -> None:
    by_steps, by_epochs = phased(StepTrigger(6)), phased(EpochTrigger(1))
    for callback in (by_steps, by_epochs):
        trainer(callback, max_epochs=3).fit(gan(), loader(4))
    # Two optimizers that step in each batch: three batches are six steps.
    assert [tuple(clock) for clock in by_steps.schedule.progress.starts] == [(0, 0), (0, 6), (1, 12)]
    assert [tuple(clock) for clock in by_epochs.schedule.progress.starts] == [(0, 0), (1, 8), (2, 16)]


def test_frozen_layers_of_both_networks_stand_still() -> None:
    module = gan()
    before = weights(module)
    trainer(LayerFreezing("embeddings,generator.0,discriminator.:1", verbose=False), max_epochs=2).fit(
        module, loader(4)
    )
    after = weights(module)
    changed = {".".join(name.split(".")[:3]) for name in before if not torch.equal(before[name], after[name])}
    ends = {"generator.out.weight", "generator.out.bias", "discriminator.score.weight", "discriminator.score.bias"}
    assert changed == ends | {"generator.layers.1", "discriminator.layers.1"}


def test_gradual_unfreezing_of_both_networks() -> None:
    class Watching(Callback):
        def __init__(self) -> None:
            self.trains: list[list[str]] = []
            self.weights: list[dict[str, torch.Tensor]] = []

        def on_train_batch_start(self, trainer: Any, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
            if batch_idx == 0:
                self.trains.append([n for n, p in pl_module.named_parameters() if p.requires_grad])
                self.weights.append(weights(pl_module))

    module, watching = gan(), Watching()
    trainer(GradualUnfreezing(layers_per_phase=3, verbose=False), watching, max_epochs=3).fit(module, loader(4))
    watching.weights.append(weights(module))
    tops = ["generator.out", "discriminator.score"]
    both = [*tops, "discriminator", "generator"]  # side by side: level by level
    layers = [tops, both, both]
    for epoch, prefixes in enumerate(layers):
        names = [n for n, _ in module.named_parameters() if n.startswith(tuple(prefixes))]
        before, after = watching.weights[epoch : epoch + 2]
        assert watching.trains[epoch] == names
        assert [n for n in before if not torch.equal(before[n], after[n])] == names


@pytest.mark.parametrize("every", [1, 3])
def test_a_warm_up_lasts_as_many_steps_of_the_layers_own_optimizer(every: int) -> None:
    module = gan(every=every)
    trainer(phased(StepTrigger(12), warmup_steps=4), max_epochs=6).fit(module, loader(4))
    for name, rate in (("generator", 0.05), ("discriminator", 0.1)):
        seen = [s for s in module.seen if s["optimizer"] == name]
        new = [s[f"{name}.layers.1.linear.weight"] for s in seen]
        begun = next(i for i, value in enumerate(new) if value != rate)
        assert new[begun : begun + 5] == pytest.approx([rate / 4, rate / 2, rate * 3 / 4, rate, rate])
        assert {s["generator.out.weight"] for s in module.seen if s["optimizer"] == "generator"} == {0.05}


def test_layer_rates_under_schedulers_stepped_by_hand() -> None:
    module = gan(schedules=True)
    trainer(DiscriminativeLR(factors={"all": 1.0, "generator.0": 0.5, "discriminator.head": 0.1}, verbose=False)).fit(
        module, loader(4)
    )
    for name, rate, scaled, factor in (
        ("generator", 0.05, "generator.layers.0.linear.weight", 0.5),
        ("discriminator", 0.1, "discriminator.score.weight", 0.1),
    ):
        seen = [s[scaled] for s in module.seen if s["optimizer"] == name]
        assert seen == pytest.approx([rate * factor * 0.9**i for i in range(12)], rel=1e-12)


def test_two_schedules_one_for_each_network() -> None:
    groups = {
        "generator": {"low": ["generator.embeddings", "generator.layers"], "high": ["generator.out"]},
        "discriminator": {"low": ["discriminator.embeddings", "discriminator.layers"], "high": ["discriminator.score"]},
    }
    seen: list[set[str]] = []

    class Watching(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: LightningModule, *_: Any) -> None:
            seen.append({".".join(n.split(".")[:2]) for n, p in pl_module.named_parameters() if p.requires_grad})

    callbacks = [
        PhasedFineTuning([Phase("high", EpochTrigger(n)), Phase("all")], groups=groups[name], verbose=False)
        for n, name in ((1, "generator"), (2, "discriminator"))
    ]
    trainer(*callbacks, Watching()).fit(gan(), loader(4))
    tops = {"generator.out", "discriminator.score"}
    second = tops | {"generator.embeddings", "generator.layers"}
    assert seen == [tops] * 4 + [second] * 4 + [second | {"discriminator.embeddings", "discriminator.layers"}] * 4


class LongToggling(Gan):
    """Toggles one optimizer for several batches in a row, so that phases change while it is toggled."""

    def __init__(self) -> None:
        super().__init__(toggles=False)
        self.trained: list[set[str]] = []

    def training_step(self, batch: Any, batch_idx: int) -> None:
        name = "discriminator" if self.global_step // 3 % 2 == 0 else "generator"
        optimizer = self.optimizers()[("discriminator", "generator").index(name)]
        if self.global_step % 3 == 0:
            self.toggle_optimizer(optimizer)
        loss = self.losses()[name](batch[0])
        optimizer.zero_grad()
        self.manual_backward(loss)
        self.trained.append({".".join(n.split(".")[:3]) for n, p in self.named_parameters() if p.requires_grad})
        optimizer.step()
        if self.global_step % 3 == 0:
            self.untoggle_optimizer(optimizer)


def test_a_phase_that_begins_while_an_optimizer_is_toggled() -> None:
    torch.manual_seed(0)
    module = LongToggling()
    # Phases begin at steps 0, 4 and 8, the optimizers take turns at steps 0, 3, 6, 9: both changes are in mid-turn.
    trainer(phased(StepTrigger(4)), max_epochs=3).fit(module, loader(4))

    def expected(step: int) -> set[str]:
        side = "discriminator" if step // 3 % 2 == 0 else "generator"
        names = {n for n, _ in module.named_parameters() if any(n.startswith(t) for t in TRAINS[min(step // 4, 2)])}
        return {".".join(n.split(".")[:3]) for n in names if n.startswith(side)}

    assert module.trained == [expected(step) for step in range(12)]
    assert all(p.requires_grad for p in module.parameters())


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_while_toggled_gives_everything_back(error: type[BaseException]) -> None:
    class Failing(Gan):
        def note(self, name: str, optimizer: Any) -> None:
            if self.global_step == 5:
                raise error("boom")

    module = Failing()
    module.generator.out.bias.requires_grad_(False)
    with pytest.raises((RuntimeError, SystemExit)):
        trainer(phased(), max_epochs=2).fit(module, loader(4))
    assert [n for n, p in module.named_parameters() if not p.requires_grad] == ["generator.out.bias"]
    assert not module._param_requires_grad_state
    module.note = lambda *_: None  # type: ignore[method-assign]
    trainer(phased(), max_epochs=2).fit(module, loader(4))


def test_a_run_resumed_between_two_warm_ups_equals_the_straight_one(tmp_path: Any) -> None:
    straight = gan(every=3, schedules=True)
    run = trainer(phased(warmup_steps=6), max_epochs=6)
    saving = Saving(tmp_path)
    run.callbacks.append(saving)  # type: ignore[attr-defined]
    run.fit(straight, StatefulLoader(4))
    assert len(saving.paths) > 6
    for path in saving.paths:
        resumed = gan(every=3, schedules=True)
        resumed.load_state_dict({k: v + 1 for k, v in resumed.state_dict().items()})
        trainer(phased(warmup_steps=6), max_epochs=6).fit(resumed, StatefulLoader(4), ckpt_path=path)
        assert_same(straight, resumed)
        assert straight.seen[len(straight.seen) - len(resumed.seen) :] == resumed.seen


class Unguarded(Gan):
    """Takes the turns of both optimizers, whether anything of theirs trains or not."""

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for name, optimizer in zip(("discriminator", "generator"), self.optimizers(), strict=True):
            self.toggle_optimizer(optimizer)
            loss = self.losses()[name](batch[0])
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            self.untoggle_optimizer(optimizer)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions take notes since Python 3.11")
def test_the_turn_of_an_optimizer_with_nothing_to_train_is_explained() -> None:
    phases = [Phase("discriminator", EpochTrigger(1)), Phase("all")]
    with pytest.raises(RuntimeError, match="does not require grad") as raised:
        trainer(PhasedFineTuning(phases, verbose=False)).fit(Unguarded(), loader(4))
    assert ["All parameters of optimizer 2 (SGD) are frozen" in note for note in raised.value.__notes__] == [True]
    # What guards against it runs.
    trainer(PhasedFineTuning(phases, verbose=False)).fit(gan(), loader(4))


class BehindLightning(Gan):
    """Steps its optimizers directly, twice in each batch, so that the trainer sees no step."""

    def __init__(self) -> None:
        super().__init__(toggles=False, schedules=True)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for name, optimizer, scheduler in zip(
            ("discriminator", "generator"), self.optimizers(use_pl_optimizer=False), self.lr_schedulers(), strict=True
        ):
            for _ in range(2):
                loss = self.losses()[name](batch[0])
                optimizer.zero_grad()
                self.manual_backward(loss)
                self.watch.begin([optimizer], lambda rates, name=name: self.note(name, rates))
                optimizer.step()
                self.watch.end()
                scheduler.step()


def test_optimizers_stepped_without_lightning_have_the_right_rates_and_warm_ups() -> None:
    module = BehindLightning()
    phases = [Phase("head", EpochTrigger(1)), Phase("generator.1,discriminator.1,head")]
    rates = DiscriminativeLR(factors={"all": 1.0, "generator.1": 0.5, "discriminator.1": 0.5}, verbose=False)
    trainer(PhasedFineTuning(phases, warmup_steps=6, verbose=False), rates, max_epochs=2).fit(module, loader(4))
    assert module.trainer.global_step == 0
    for name, rate in (("generator", 0.05), ("discriminator", 0.1)):
        seen = [s[f"{name}.layers.1.linear.weight"] for s in module.seen if s["optimizer"] == name]
        assert len(seen) == 16
        warm_up = [*(n / 6 for n in range(1, 7)), 1, 1]
        assert seen[8:] == pytest.approx([rate * 0.5 * 0.9 ** (8 + i) * w for i, w in enumerate(warm_up)], rel=1e-12)


@pytest.mark.parametrize("trigger", [StepTrigger(3), EpochTrigger(9) | StepTrigger(3)])
def test_a_step_trigger_that_could_never_fire_is_refused(trigger: Any) -> None:
    words = r"waits for .*StepTrigger\(3\), but BehindLightning steps its optimizers without Lightning.*EpochTrigger"
    with pytest.raises(ConfigurationError, match=words):
        trainer(phased(trigger)).fit(BehindLightning(), loader(4))
    trainer(phased(EpochTrigger(1))).fit(BehindLightning(), loader(4))


class Saving(Callback):
    def __init__(self, folder: Any) -> None:
        self.folder, self.paths = folder, []

    def on_train_batch_end(self, trainer: Any, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step % 3 == 0:
            self.paths.append(self.folder / f"{trainer.global_step}.ckpt")
            trainer.save_checkpoint(self.paths[-1])


def test_a_users_own_unfreezing_is_told_from_a_toggling() -> None:
    class Unfreezing(Gan):
        def on_train_epoch_start(self) -> None:
            if self.current_epoch == 1:
                self.generator.embeddings.requires_grad_(True)

    with pytest.raises(ConfigurationError, match=r"holds 1 parameters frozen .*generator\.embeddings"):
        trainer(phased(StepTrigger(100)), max_epochs=2).fit(Unfreezing(), loader(4))
