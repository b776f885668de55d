"""A second fit starts clean, and the first one leaves nothing behind, however it ended."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, LearningRateFinder, StochasticWeightAveraging
from torch import nn
from toys import Recorder, Toy, fit, loader, make, moved, trainer, weights

from lightning_freeze import (
    DiscriminativeLR,
    EpochTrigger,
    GradualUnfreezing,
    LayerFreezing,
    Phase,
    PhasedFineTuning,
)
from lightning_freeze.session.moments import Moments

PHASES = [Phase("head", EpochTrigger(1)), Phase("1:,head", EpochTrigger(1)), Phase("embeddings,0,head")]
SETS: dict[str, Callable[[], list[Callback]]] = {
    "freezing": lambda: [LayerFreezing("embeddings,:2", verbose=False)],
    "gradual": lambda: [GradualUnfreezing(layers_per_phase=3, warmup_steps=3, verbose=False)],
    "rates": lambda: [DiscriminativeLR(0.5, verbose=False)],
    "all": lambda: [
        LayerFreezing("0", verbose=False),
        PhasedFineTuning(PHASES, restore_best=True, monitor="val_loss", warmup_steps=2, verbose=False),
        DiscriminativeLR(0.5, verbose=False),
    ],
}


def adamw(module: nn.Module) -> Any:
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01)
    return [optimizer], [{"scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9), "interval": "step"}]


def prepared(**options: Any) -> Toy:
    """A module of which the user has frozen one parameter and put one block in eval mode."""
    module = make(make_optimizers=adamw, dropout=0.5, **options)
    module.encoder.layers[3].linear.bias.requires_grad_(False)
    module.encoder.layers[1].eval()
    module.encoder.layers[2].dropout.eval()
    return module


def snapshot(module: LightningModule, the_trainer: Trainer) -> dict[str, Any]:
    """All that a callback may have changed on the module, on itself, or on those beside it."""
    return {
        "requires_grad": {name: p.requires_grad for name, p in module.named_parameters()},
        "modes": {name: m.training for name, m in module.named_modules()},
        "keys": list(module.state_dict()),
        "attributes": {name: sorted(vars(m)) for name, m in module.named_modules()},
        "hooks": {
            name: [len(hooks) for key, hooks in sorted(vars(m).items()) if key.endswith("_hooks")]
            for name, m in module.named_modules()
        },
        "methods": {name: getattr(module, name) for name in ("setup", "configure_model", "configure_optimizers")},
        "global hooks": len(torch.nn.modules.module._global_forward_pre_hooks),
        "beside": [sorted(vars(c)) for c in the_trainer.callbacks],  # type: ignore[attr-defined]
    }


class Ending(Callback):
    """Ends a run in its second epoch."""

    def __init__(self, error: BaseException | None) -> None:
        self.error: BaseException | None = error

    def on_train_batch_end(
        self, trainer: Any, pl_module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        if self.error is not None and trainer.current_epoch == 1 and index == 1:
            raise self.error


ERRORS = [None, RuntimeError("boom"), KeyboardInterrupt()]


@pytest.mark.fast_cases(5)
@pytest.mark.parametrize("error", ERRORS, ids=repr)
@pytest.mark.parametrize("name", SETS)
def test_whatever_the_end_the_module_is_given_back(name: str, error: BaseException | None) -> None:
    module, ending = prepared(), Ending(error)
    beside = [EarlyStopping("val_loss", patience=99), StochasticWeightAveraging(0.01)]
    the_trainer = trainer(*SETS[name](), *beside, ending, max_epochs=4)
    # Lightning keeps on a module and its callbacks what it found out about them; let it do so first.
    trainer(fast_dev_run=True).fit(module, loader(1), loader(1))
    given = snapshot(module, the_trainer)
    try:
        the_trainer.fit(module, loader(4), loader(2, seed=2))
    except (RuntimeError, SystemExit, KeyboardInterrupt):
        assert error is not None
    else:
        assert error is None
    found = snapshot(module, the_trainer)
    for what, value in given.items():
        if what == "beside":
            assert all(not set(new) & {"on_train_epoch_start", "on_validation_end"} for new in found[what])
        elif what == "attributes":
            assert {n: set(found[what][n]) - set(a) for n, a in value.items()} == {n: set() for n in value}
        else:
            assert found[what] == value, what
    assert Moments.of(module) is None


@pytest.mark.fast_cases(5)
@pytest.mark.parametrize("error", ERRORS, ids=repr)
@pytest.mark.parametrize("name", SETS)
def test_a_second_fit_equals_the_first_of_a_fresh_callback(name: str, error: BaseException | None) -> None:
    def second(callbacks: list[Callback], module: Toy) -> Recorder:
        recorder = Recorder()
        trainer(*callbacks, recorder, max_epochs=4).fit(module, loader(4), loader(2, seed=2))
        return recorder

    used, module = SETS[name](), prepared()
    with contextlib.suppress(RuntimeError, SystemExit, KeyboardInterrupt):
        trainer(*used, Ending(error), max_epochs=4).fit(module, loader(4), loader(2, seed=2))
    twin = prepared()
    twin.load_state_dict(module.state_dict())
    for one, callbacks in ((module, used), (twin, SETS[name]())):
        torch.manual_seed(5)
        one.again = second(callbacks, one)
    assert module.again.trains == twin.again.trains
    assert module.again.eval_blocks == twin.again.eval_blocks
    assert module.again.rates == twin.again.rates
    left, right = weights(module), weights(twin)
    assert all(torch.equal(left[n], right[n]) for n in left)


@pytest.mark.parametrize("name", SETS)
def test_the_same_trainer_continues_or_starts_again(name: str) -> None:
    module, recorder = prepared(), Recorder()
    the_trainer = trainer(*SETS[name](), recorder, max_epochs=4)
    the_trainer.fit(module, loader(4), loader(2, seed=2))
    first = len(recorder.trains)
    the_trainer.fit(module, loader(4), loader(2, seed=2))  # at its last epoch already
    assert len(recorder.trains) == first == 16
    the_trainer.fit_loop.max_epochs = 8
    the_trainer.fit(module, loader(4), loader(2, seed=2))
    assert len(recorder.trains) == 32
    # The trainer continues to count; the schedule starts again, as the optimizer does.
    assert recorder.trains[16:] == recorder.trains[:16]
    assert recorder.clocks[16] == (4, 16)


def test_a_callback_serves_a_second_model_of_another_depth() -> None:
    callback, deep, shallow = GradualUnfreezing(layers_per_phase=2, verbose=False), make(), make(depth=2)
    for module, top in ((deep, "3"), (shallow, "1")):
        recorder, before = Recorder(), weights(module)
        fit(module, callback, recorder, max_epochs=4)
        assert recorder.phases()[0][1] == {"head"}
        assert top in recorder.phases()[1][1]
        assert "embeddings" in moved(before, weights(module))
    assert callback.stack.names == ["embeddings", "0", "1", "head"]


def test_what_was_frozen_at_construction_stays_so_through_fits() -> None:
    peft = pytest.importorskip("peft")
    module = make()
    module.encoder.embeddings.requires_grad_(False)
    module.encoder.layers[0] = peft.get_peft_model(  # type: ignore[assignment]
        module.encoder.layers[0], peft.LoraConfig(r=2, target_modules=["linear"])
    ).double()
    given = {n for n, p in module.named_parameters() if p.requires_grad}
    assert {n for n in given if ".layers.0." in n} == {n for n in given if "lora_" in n}
    before = weights(module)
    for _ in range(2):
        fit(module, GradualUnfreezing(layers_per_phase=2, verbose=False), max_epochs=4)
        assert {n for n, p in module.named_parameters() if p.requires_grad} == given
    after = weights(module)
    assert {n for n in before if not torch.equal(before[n], after[n])} == given


def test_a_run_stopped_by_a_finders_failure_leaves_nothing() -> None:
    class Failing(Toy):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            raise RuntimeError("boom")

    module = Failing(make_optimizers=lambda m: torch.optim.SGD(m.parameters(), lr=m.lr))
    module.lr = 0.1
    finder = LearningRateFinder(num_training_steps=5)
    with pytest.raises(RuntimeError, match="boom"):
        fit(module, finder, GradualUnfreezing(verbose=False))
    assert all(p.requires_grad for p in module.parameters())
    assert all(m.training for m in module.modules())
    assert "lr_find" not in vars(finder)
    assert Moments.of(module) is None
