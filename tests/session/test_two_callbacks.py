"""Several callbacks of one class, and Lightning's own that stop a run or keep its checkpoints."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from toys import Recorder, StatefulLoader, fit, loader, make, trainer, weights

from lightning_freeze import (
    DiscriminativeLR,
    EpochTrigger,
    GradualUnfreezing,
    LayerFreezing,
    Phase,
    PhasedFineTuning,
    PlateauTrigger,
    StepTrigger,
)
from lightning_freeze.errors import ConfigurationError

LOW = {"lower": ["encoder.embeddings", "encoder.layers.0"], "upper": ["encoder.layers.1"]}
HIGH = {"lower": ["encoder.layers.2", "encoder.layers.3"], "upper": ["classifier"]}


def both() -> list[Callback]:
    return [
        PhasedFineTuning([Phase("upper", StepTrigger(6)), Phase("all")], groups=LOW, warmup_steps=5, verbose=False),
        PhasedFineTuning([Phase("upper", StepTrigger(3)), Phase("all")], groups=HIGH, warmup_steps=4, verbose=False),
        DiscriminativeLR(0.5, groups=LOW, verbose=False),
        DiscriminativeLR(0.8, groups=HIGH, verbose=False),
        LayerFreezing("0", verbose=False),
        LayerFreezing("embeddings", verbose=False),
    ]


def adamw(module: Any) -> Any:
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01)
    return [optimizer], [{"scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9), "interval": "step"}]


def test_state_keys_are_distinct() -> None:
    keys = [callback.state_key for callback in both()[:4]]
    keys += [GradualUnfreezing(stop=stop).state_key for stop in ("1", "2")]
    keys += [DiscriminativeLR(0.5).state_key, DiscriminativeLR(0.5, factors={"head": 2}).state_key]
    assert len(set(keys)) == len(keys)


def test_two_schedules_and_two_sets_of_rates_do_what_each_would_do_alone() -> None:
    recorder = Recorder()
    fit(make(make_optimizers=adamw), *both(), recorder)
    assert recorder.phases() == [
        ((0, 0), {"1", "head"}),
        ((0, 3), {"1", "2", "3", "head"}),
    ]  # what the first one unfreezes after six steps stays frozen: the static callbacks hold it
    assert [rates["encoder.layers.1.linear.weight"] for rates in recorder.rates] == pytest.approx(
        [0.01 * 0.9**step for step in range(12)]
    )
    third = [rates["encoder.layers.3.linear.weight"] for rates in recorder.rates]
    warm_up = [1 / 4, 2 / 4, 3 / 4, *[1.0] * 6]
    assert third[3:] == pytest.approx([0.01 * 0.9 ** (s + 3) * 0.8 * w for s, w in enumerate(warm_up)])


def test_two_of_each_resume(tmp_path: Any) -> None:
    def go(path: Any = None) -> tuple[dict[str, torch.Tensor], Recorder]:
        module, recorder = make(make_optimizers=adamw), Recorder()
        saving = [ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1)] if path is None else []
        trainer(*both(), recorder, *saving, enable_checkpointing=path is None).fit(
            module, StatefulLoader(4), ckpt_path=path
        )
        return weights(module), recorder

    straight, recorded = go()
    paths = sorted(tmp_path.glob("*.ckpt"))
    assert len(paths) == 12
    for path in paths[::2]:
        assert {"PhasedFineTuning", "DiscriminativeLR"} <= {
            key.split("{")[0] for key in torch.load(path, weights_only=True)["callbacks"]
        }
        with pytest.warns(UserWarning, match="callbacks used to create the checkpoint"):
            resumed, later = go(path)
        taken = len(later.trains)
        assert (recorded.trains[12 - taken :], recorded.rates[12 - taken :]) == (later.trains, later.rates)
        assert all(torch.equal(straight[name], resumed[name]) for name in straight)


def test_two_that_are_alike_are_refused_by_lightning_or_by_us() -> None:
    # Before any of our code runs.
    with pytest.raises(RuntimeError, match="Found more than one stateful callback of type `GradualUnfreezing`"):
        trainer(GradualUnfreezing(), GradualUnfreezing())
    with pytest.raises(ConfigurationError, match="both schedule the same layers"):
        fit(make(), GradualUnfreezing(verbose=False), GradualUnfreezing(stop="1", verbose=False))
    # Two static freezes have no state: one more does nothing.
    recorder = Recorder()
    fit(make(), LayerFreezing("embeddings", verbose=False), LayerFreezing("embeddings", verbose=False), recorder)
    assert recorder.trains == [{"0", "1", "2", "3", "head"}] * 12


def test_early_stopping_and_checkpoints_of_the_best_in_one_run(tmp_path: Any) -> None:
    values = [5.0, 4.0, 4.5, 4.6, 3.0, 2.0, 2.5, 2.6, 2.7, 2.8]
    stopping = EarlyStopping("scripted", patience=2)
    best = ModelCheckpoint(tmp_path, monitor="scripted", save_top_k=2, filename="{epoch}")
    phases = [Phase("head", PlateauTrigger("scripted", patience=1)), Phase("2:,head")]
    callback, recorder = PhasedFineTuning(phases, verbose=False), Recorder()
    run = fit(
        make(values=values), stopping, best, callback, recorder, max_epochs=10, enable_checkpointing=True, batches=2
    )
    # The fourth validation ends the phase; from there on patience counts again: the best is the sixth.
    assert [clock for clock, _ in recorder.phases()] == [(0, 0), (4, 8)]
    assert run.current_epoch == 8
    assert {path.stem for path in tmp_path.glob("*.ckpt")} == {"epoch=5", "epoch=6"}
    assert best.best_model_path.endswith("epoch=5.ckpt")
    state = torch.load(best.best_model_path, weights_only=True)
    (ours,) = [value for key, value in state["callbacks"].items() if key.startswith("PhasedFineTuning")]
    assert ours["phase"] == 1


def test_resuming_from_the_best_checkpoint_of_an_earlier_phase_goes_back_to_that_phase(tmp_path: Any) -> None:
    def callbacks() -> list[Callback]:
        return [GradualUnfreezing(EpochTrigger(2), layers_per_phase=2, verbose=False)]

    best = ModelCheckpoint(tmp_path, monitor="scripted", filename="{epoch}")
    values = [3.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    fit(make(values=values), best, *callbacks(), max_epochs=7, enable_checkpointing=True)
    assert best.best_model_path.endswith("epoch=1.ckpt")
    recorder = Recorder()
    with pytest.warns(UserWarning, match="callbacks used to create the checkpoint"):
        fit(make(), *callbacks(), recorder, max_epochs=7, ckpt_path=best.best_model_path)
    assert [clock for clock, _ in recorder.phases()] == [(2, 8), (4, 16), (6, 24)]


def test_one_callback_of_each_kind_in_any_order_is_the_same_run() -> None:
    def callbacks() -> list[Callback]:
        return [
            GradualUnfreezing(EpochTrigger(1), warmup_steps=2, verbose=False),
            LayerFreezing("embeddings", verbose=False),
            DiscriminativeLR(0.7, verbose=False),
        ]

    found = []
    for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
        module, recorder, ours = make(make_optimizers=adamw), Recorder(), callbacks()
        fit(module, *(ours[i] for i in order), recorder, max_epochs=5)
        found.append((weights(module), recorder.trains, recorder.rates))
    for other in found[1:]:
        assert all(torch.equal(found[0][0][name], other[0][name]) for name in other[0])
        assert found[0][1:] == other[1:]


def test_the_loader_of_these_tests_is_the_same_each_time() -> None:
    one, two = (torch.cat([tokens for tokens, _ in loader(4)]) for _ in range(2))
    assert torch.equal(one, two)
