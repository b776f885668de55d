"""Checkpoints without frozen weights: how small they are, what they hold, and every way of loading them."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from frozen_runs import Model, adamw, assert_same, content, omitted, run
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import (
    LearningRateFinder,
    ModelCheckpoint,
    OnExceptionCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader
from toys import Recorder, StatefulLoader, fit, layer_of, loader, trainer, weights
from transformers import BertModel

from lightning_freeze import (
    LISA,
    ChainThaw,
    EpochTrigger,
    GradualUnfreezing,
    LayerFreezing,
    LinearProbeThenFineTune,
    Phase,
    PhasedFineTuning,
    ReinitTopLayers,
    StepTrigger,
    TransformerModule,
    ULMFiT,
)
from lightning_freeze.checkpoints.saving import saves_whole_weights
from lightning_freeze.errors import ConfigurationError

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*callbacks used to create the checkpoint",
    "ignore:.*Checkpoint directory .* exists and is not empty",
    "ignore:.*reaches the last one after",
)

GROUPS_BUT_LAST = {
    "embeddings": "encoder.embeddings",
    **{str(number): f"encoder.layers.{number}" for number in range(3)},
    "head": "classifier",
}
FROZEN = {"embeddings", "0", "1", "2", "3"}
SCHEDULES: dict[str, Any] = {
    "static": lambda save=False: [LayerFreezing("embeddings,:", verbose=False, save_frozen=save)],
    "part": lambda save=False: [LayerFreezing("embeddings,:2", verbose=False, save_frozen=save)],
    "steps": lambda save=False: [GradualUnfreezing(StepTrigger(2), verbose=False, save_frozen=save)],
    "best": lambda save=False: [
        PhasedFineTuning(
            [Phase("head", EpochTrigger(1)), Phase("2:,head", EpochTrigger(1)), Phase("head")],
            restore_best=True, monitor="val_loss", verbose=False, save_frozen=save,
        )
    ],
    "both": lambda save=False: [
        LayerFreezing("embeddings", verbose=False, save_frozen=save),
        GradualUnfreezing(StepTrigger(3), warmup_steps=2, verbose=False, save_frozen=save),
    ],
    "lisa": lambda save=False: [LISA(1, interval=2, embeddings=False, verbose=False, save_frozen=save)],
}  # fmt: skip


def freezing(**options: Any) -> LayerFreezing:
    return LayerFreezing("embeddings,:", verbose=False, save_frozen=False, **options)


def step_of(path: Path) -> int:
    return int(path.stem.split("=")[1])


def small(tmp_path: Path, *callbacks: Callback, **options: Any) -> tuple[str, Model]:
    """A small checkpoint of a short run, and the module that it was saved of."""
    the_trainer, model = run(*(callbacks or [freezing()]), **options)
    path = str(tmp_path / "small.ckpt")
    the_trainer.save_checkpoint(path)
    return path, model


# ------------------------------------------------------------------------------------------ what is saved


@pytest.mark.parametrize("weights_only", [False, True])
def test_a_checkpoint_shrinks_to_what_trains(tmp_path, weights_only):
    sizes = {}
    for save in (True, False):
        model = Model(width=128, make_optimizers=adamw)
        the_trainer, _ = run(LayerFreezing("embeddings,:", verbose=False, save_frozen=save), module=model, max_epochs=1)
        the_trainer.save_checkpoint(tmp_path / f"{save}.ckpt", weights_only=weights_only)
        sizes[save] = (tmp_path / f"{save}.ckpt").stat().st_size
    assert sizes[False] < sizes[True] / 15, sizes


def test_whole_checkpoints_are_the_default(tmp_path):
    _, _ = run(LayerFreezing("embeddings,:", verbose=False), path=tmp_path, max_epochs=1)
    assert all(not omitted(path) for path in tmp_path.glob("*.ckpt"))


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize("name", SCHEDULES)
def test_only_what_never_changed_is_left_out_in_every_phase(name, tmp_path):
    recorder = Recorder()
    run(*SCHEDULES[name](), recorder, path=tmp_path / "small")
    run(*SCHEDULES[name](save=True), path=tmp_path / "whole")
    built = weights(Model())
    for path in sorted((tmp_path / "small").glob("*.ckpt"), key=step_of):
        whole = content(tmp_path / "whole" / path.name)["state_dict"]
        left_out = omitted(path)
        assert all(torch.equal(whole[n], built[n]) for n in left_out)
        trained = set().union(*recorder.trains[: step_of(path)])
        never = {n for n in built if n != "calls" and layer_of(n) not in trained}
        expected = {n for n in never if name != "part" or layer_of(n) in ("embeddings", "0", "1")}
        assert left_out == expected
        values = content(path)["state_dict"]
        assert list(values) == list(whole) and values._metadata == whole._metadata
        assert all(torch.equal(values[n], whole[n]) for n in whole if n not in left_out)
        states = content(path)["optimizer_states"][0]["state"]
        assert_same(states, content(tmp_path / "whole" / path.name)["optimizer_states"][0]["state"])
    first = content(tmp_path / "small" / "step=1.ckpt")
    assert len(first["optimizer_states"][0]["state"]) < len(built) - 1


def test_what_anything_changed_although_frozen_is_saved(tmp_path):
    class Moves(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            pl_module.encoder.layers[1].linear.weight.data.add_(1e-9)  # not seen by version counters
            pl_module.encoder.layers[2].norm.running.add_(1)

    model = Model(make_optimizers=adamw)
    model.encoder.layers[2].norm.register_buffer("running", torch.zeros(2))
    model.encoder.layers[3].norm.register_buffer("still", torch.zeros(2))
    the_trainer, _ = run(freezing(), Moves(), module=model, max_epochs=1)
    the_trainer.save_checkpoint(tmp_path / "a.ckpt")
    left_out = omitted(tmp_path / "a.ckpt")
    assert "encoder.layers.3.norm.still" in left_out and "encoder.layers.1.norm.weight" in left_out
    assert not {"encoder.layers.1.linear.weight", "encoder.layers.2.norm.running", "calls"} & left_out


@pytest.mark.parametrize("order", [0, 1])
def test_layers_that_were_given_new_weights_are_saved_although_frozen(tmp_path, order):
    waiting = PhasedFineTuning([Phase("head", EpochTrigger(9)), Phase("all")], verbose=False, save_frozen=False)
    callbacks = [waiting, ReinitTopLayers(1, verbose=False)]
    path, model = small(tmp_path, *(callbacks if order else callbacks[::-1]), max_epochs=1)
    left_out = {name for name in omitted(path) if name.endswith("linear.weight")}
    assert {layer_of(name) for name in left_out} == {"0", "1", "2"}
    assert_same(weights(Model.load_from_checkpoint(path)), weights(model))


def test_only_the_layers_of_the_callback_that_says_so_are_left_out(tmp_path):
    gradual = GradualUnfreezing(EpochTrigger(9), verbose=False)
    path, _ = small(
        tmp_path, LayerFreezing("embeddings", verbose=False, save_frozen=False), gradual, max_epochs=1, max_steps=2
    )
    assert omitted(path) == {"encoder.embeddings.weight"}


def test_what_the_module_itself_has_frozen_is_left_out_too(tmp_path):
    class Adapted(Model):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.encoder.requires_grad_(False)
            self.encoder.layers[0].linear.bias.requires_grad_(True)

    freezing = LayerFreezing("embeddings", verbose=False, save_frozen=False)
    path, model = small(tmp_path, freezing, module=Adapted(make_optimizers=adamw), max_epochs=1)
    saved = {name for name, _ in model.named_parameters()} - omitted(path)
    assert saved == {"encoder.layers.0.linear.bias", "classifier.weight", "classifier.bias"}
    assert_same(weights(Adapted.load_from_checkpoint(path)), weights(model))


@pytest.mark.parametrize(
    ("first", "left_out"),
    [
        ([], set()),
        ([LayerFreezing("embeddings", verbose=False)], {"embeddings"}),
        ([PhasedFineTuning([Phase("2:,head")], verbose=False, save_frozen=False)], {"embeddings", "0", "1"}),
        ([PhasedFineTuning([Phase("0", StepTrigger(1)), Phase("1,head")], verbose=False)], {"embeddings", "2", "3"}),
    ],
)
def test_weights_that_an_earlier_fit_of_the_module_trained_are_saved(tmp_path, first, left_out):
    model = Model(make_optimizers=adamw)
    fit(model, *first, max_steps=2 if first else 4)
    path, _ = small(tmp_path, module=model)
    assert {layer_of(name) for name in omitted(path)} == left_out


class WritesThroughData(torch.optim.SGD):
    """As SGD, but its writes leave the version counters as they are."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = closure() if closure else None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.data.add_(parameter.grad.data, alpha=-group["lr"])
        return loss


@pytest.mark.parametrize("unfreezes", [False, True])
def test_weights_that_an_earlier_fit_trained_unnoticed_by_version_counters_are_saved(tmp_path, unfreezes):
    class Unfreezes(Callback):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            pl_module.encoder.layers[3].requires_grad_(unfreezes)

    model = Model(make_optimizers=lambda module: WritesThroughData(module.parameters(), lr=0.1))
    model.encoder.layers[3].requires_grad_(False)
    schedule = PhasedFineTuning([Phase("1", StepTrigger(1)), Phase("2,head")], groups=GROUPS_BUT_LAST, verbose=False)
    fit(model, schedule, Unfreezes(), max_steps=3)
    path, _ = small(tmp_path, module=model, max_epochs=1)
    assert {layer_of(name) for name in omitted(path)} == {"embeddings", "0"} | (set() if unfreezes else {"3"})
    assert_same(weights(Model.load_from_checkpoint(path)), weights(model))


class OwnStateDict(Model):
    """Its ``state_dict`` takes no arguments, which is all that Lightning needs."""

    def state_dict(self) -> dict[str, Any]:  # type: ignore[override]
        return super().state_dict()


def test_a_module_whose_state_dict_takes_no_arguments(tmp_path):
    model = OwnStateDict(make_optimizers=adamw)
    the_trainer, _ = run(*SCHEDULES["steps"](), path=tmp_path, module=model, max_epochs=1)
    first, last = (tmp_path / f"step={step}.ckpt" for step in (1, 4))
    assert {layer_of(name) for name in omitted(first)} == FROZEN
    assert_same(weights(OwnStateDict.load_from_checkpoint(last)), weights(model))
    the_trainer.test(model, loader(2, seed=2), ckpt_path=first, verbose=False)
    assert_same(weights(model), weights(OwnStateDict.load_from_checkpoint(first)))


def test_statistics_that_an_earlier_fit_moved_are_saved(tmp_path):
    class Normalised(Model):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.encoder.layers[0].dropout = torch.nn.BatchNorm1d(5)
            self.double()

    model = Normalised(make_optimizers=adamw)
    model.encoder.layers[0].dropout.requires_grad_(False)
    fit(model, LayerFreezing("embeddings,1:", verbose=False), max_steps=2)
    path, _ = small(tmp_path, module=model)
    assert not {name for name in omitted(path) if "dropout.running" in name or "num_batches" in name}
    assert_same(weights(Normalised.load_from_checkpoint(path)), weights(model))


def test_weights_of_a_whole_checkpoint_that_are_not_those_of_the_module_are_saved(tmp_path):
    the_trainer, _ = run(max_epochs=1)
    the_trainer.save_checkpoint(tmp_path / "whole.ckpt")
    path, model = small(tmp_path, freezing(), ckpt_path=tmp_path / "whole.ckpt", max_epochs=2)
    assert not omitted(path)
    assert_same(weights(Model.load_from_checkpoint(path)), weights(model))


@pytest.mark.parametrize("command", ["validate", "test"])
def test_weights_that_another_command_has_loaded_are_saved(tmp_path, command):
    the_trainer, _ = run(max_epochs=1)
    the_trainer.save_checkpoint(tmp_path / "whole.ckpt")
    model = Model(make_optimizers=adamw)
    again = trainer(freezing(), max_epochs=1)
    getattr(again, command)(model, loader(2, seed=2), ckpt_path=tmp_path / "whole.ckpt", verbose=False)
    again.fit(model, StatefulLoader(4))
    again.save_checkpoint(tmp_path / "next.ckpt")
    assert not omitted(tmp_path / "next.ckpt")
    assert_same(weights(Model.load_from_checkpoint(tmp_path / "next.ckpt")), weights(model))


def test_weights_that_a_small_checkpoint_left_out_stay_those_of_the_module_as_built(tmp_path):
    path, _ = small(tmp_path)
    model = Model(make_optimizers=adamw)
    again = trainer(freezing(), max_epochs=1)
    again.validate(model, loader(2, seed=2), ckpt_path=path, verbose=False)
    again.fit(model, StatefulLoader(4))
    again.save_checkpoint(tmp_path / "next.ckpt")
    assert omitted(tmp_path / "next.ckpt") == omitted(path)


def test_layers_that_are_initialised_in_many_steps_are_left_out(tmp_path):
    """As timm does it: its ``trunc_normal_`` writes five times, and the weights of a file are loaded after that."""
    model = Model(make_optimizers=adamw)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("linear.weight"):
                weight.uniform_(-0.9, 0.9).erfinv_().mul_(0.02).add_(0.0).clamp_(-2, 2)
    model.load_state_dict(Model().state_dict())
    path, _ = small(tmp_path, module=model)
    left_out = omitted(path)
    assert left_out == omitted(small(tmp_path)[0]) and "encoder.layers.0.linear.weight" in left_out


def fit_on_tokens(model, callback):
    inputs = {"input_ids": torch.randint(5, 20, (4, 6)), "labels": torch.tensor([0, 1, 0, 1])}
    rows = [{name: tensor[i] for name, tensor in inputs.items()} for i in range(4)]
    the_trainer = trainer(callback, max_epochs=1)
    the_trainer.fit(model, DataLoader(rows, batch_size=2))
    return the_trainer


@pytest.mark.filterwarnings("ignore:.*head", "ignore:.*the first layer that trains")
def test_new_layers_are_saved_although_frozen(tmp_path, tiny_bert_dir):
    torch.manual_seed(1)
    model = TransformerModule(str(tiny_bert_dir), num_classes=2)
    inputs = {"input_ids": torch.randint(5, 20, (4, 6)), "labels": torch.tensor([0, 1, 0, 1])}
    rows = [{name: tensor[i] for name, tensor in inputs.items()} for i in range(4)]
    freezing = LayerFreezing("embeddings,:3,head", verbose=False, save_frozen=False)
    the_trainer = trainer(freezing, max_epochs=1)
    the_trainer.fit(model, DataLoader(rows, batch_size=2))
    the_trainer.save_checkpoint(tmp_path / "a.ckpt")
    left_out = omitted(tmp_path / "a.ckpt")
    assert "model.bert.embeddings.word_embeddings.weight" in left_out
    assert not {name for name in left_out if "classifier" in name}
    assert_same(weights(TransformerModule.load_from_checkpoint(tmp_path / "a.ckpt")), weights(model))


def test_the_base_of_adapters_is_left_out(tmp_path):
    peft = pytest.importorskip("peft")

    class Adapted(Model):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            with torch.random.fork_rng():
                torch.manual_seed(3)
                config = peft.LoraConfig(target_modules=["linear"], r=2)
                self.encoder = peft.get_peft_model(self.encoder, config).double()

    schedule = GradualUnfreezing(EpochTrigger(1), layers_per_phase=3, verbose=False, save_frozen=False)
    path, model = small(tmp_path, schedule, module=Adapted(make_optimizers=adamw))
    left_out = omitted(path)
    assert any("base_layer" in name for name in left_out) and not any("lora" in name for name in left_out)
    assert all("base_layer" in name or "norm" in name or "embeddings" in name for name in left_out)
    assert_same(weights(Adapted.load_from_checkpoint(path)), weights(model))


@pytest.mark.parametrize("pooling", ["mean", None])
@pytest.mark.filterwarnings("ignore:.*head", "ignore:.*the first layer that trains", "ignore:.*reaches the last one")
def test_adapters_that_no_phase_has_trained_are_saved_because_they_are_random(tmp_path, tiny_bert_dir, pooling):
    pytest.importorskip("peft")
    options = {"pooling": pooling, "peft": {"method": "lora", "r": 2, "target_modules": ["query"]}}
    model = TransformerModule(str(tiny_bert_dir), num_classes=2, **options)
    schedule = GradualUnfreezing(verbose=False, save_frozen=False)
    the_trainer = fit_on_tokens(model, schedule)
    the_trainer.save_checkpoint(tmp_path / "a.ckpt")
    left_out = omitted(tmp_path / "a.ckpt")
    assert any("base_layer" in name for name in left_out)
    assert not [name for name in left_out if "lora" in name or "classifier" in name]
    torch.manual_seed(torch.seed())  # a process of its own, which has another seed
    assert_same(weights(TransformerModule.load_from_checkpoint(tmp_path / "a.ckpt")), weights(model))


@pytest.mark.filterwarnings("ignore:.*head", "ignore:.*the first layer that trains")
def test_whatever_the_checkpoint_of_an_encoder_did_not_hold_is_saved(tmp_path, tiny_bert_dir):
    class Encoder(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = BertModel.from_pretrained(tmp_path / "without_pooler")
            self.head = nn.Linear(self.encoder.config.hidden_size, 2)

        def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
            labels = batch.pop("labels")
            return nn.functional.cross_entropy(self.head(self.encoder(**batch).pooler_output), labels)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters())

    BertModel.from_pretrained(tiny_bert_dir, add_pooling_layer=False).save_pretrained(tmp_path / "without_pooler")
    model = Encoder()
    the_trainer = fit_on_tokens(model, LayerFreezing("embeddings,:1,*pooler*", verbose=False, save_frozen=False))
    the_trainer.save_checkpoint(tmp_path / "a.ckpt")
    left_out = omitted(tmp_path / "a.ckpt")
    assert any("layer.0." in name for name in left_out) and not [name for name in left_out if "pooler" in name]
    torch.manual_seed(torch.seed())
    assert_same(weights(Encoder.load_from_checkpoint(tmp_path / "a.ckpt")), weights(model))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:You're using the WeightAveraging callback")
def test_averaged_weights(tmp_path):
    def averaging() -> WeightAveraging:
        return WeightAveraging(avg_fn=lambda average, current, count: average.lerp(current, 0.3))

    for kind, save in (("whole", True), ("small", False)):
        run(*SCHEDULES["steps"](save), averaging(), path=tmp_path / kind)
    paths = sorted((tmp_path / "small").glob("*.ckpt"), key=step_of)
    first = content(paths[0])
    assert sum(v.__class__.__name__ == "OmittedWeight" for v in first["current_model_state"].values()) > 10
    for path in paths[:-1:3]:
        _, resumed = run(*SCHEDULES["steps"](), averaging(), ckpt_path=path)
        _, straight = run(*SCHEDULES["steps"](), averaging(), ckpt_path=tmp_path / "whole" / path.name)
        assert_same(weights(resumed), weights(straight))


def test_every_kind_of_checkpoint_that_lightning_saves(tmp_path):
    class Fails(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                raise RuntimeError("on purpose")

    best = ModelCheckpoint(tmp_path / "best", monitor="val_loss", save_last=True)
    light = ModelCheckpoint(tmp_path / "light", save_weights_only=True)
    rescue = OnExceptionCheckpoint(tmp_path / "rescue")
    plugin = AsyncCheckpointIO()
    with pytest.raises(RuntimeError, match="on purpose"):
        run(freezing(), best, light, rescue, Fails(), enable_checkpointing=True, plugins=[plugin])
    found = list(tmp_path.rglob("*.ckpt"))
    assert len(found) == 4
    assert all({layer_of(name) for name in omitted(path)} == FROZEN for path in found)


# ------------------------------------------------------------------------------------------ loading


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_run_resumed_from_any_step_equals_the_straight_one(name, tmp_path):
    straight, model = run(*SCHEDULES[name](), path=tmp_path)
    paths = sorted(tmp_path.glob("*.ckpt"), key=step_of)
    assert len(paths) == 12
    for path in paths[:-1]:
        resumed, other = run(*SCHEDULES[name](), ckpt_path=path)
        assert_same(weights(other), weights(model))
        assert_same(resumed.optimizers[0].state_dict(), straight.optimizers[0].state_dict())


def test_load_from_checkpoint_of_a_module_that_knows_nothing_of_it(tmp_path):
    path, model = small(tmp_path)
    for strict in (None, True, False):
        assert_same(weights(Model.load_from_checkpoint(path, strict=strict)), weights(model))
    assert_same(weights(Model.load_from_checkpoint(path, weights_only=False)), weights(model))


def test_the_trainers_commands_with_and_without_the_callback(tmp_path):
    path, model = small(tmp_path)
    for callbacks in ([], [freezing()]):
        the_trainer = trainer(*callbacks)
        other = Model()
        (loss,) = the_trainer.test(other, loader(2, seed=2), ckpt_path=path, verbose=False)
        assert_same(weights(other), weights(model))
        (same,) = the_trainer.validate(Model(), loader(2, seed=2), ckpt_path=path, verbose=False)
        assert same["val_loss"] == loss["test_loss"]
        predictions = the_trainer.predict(Model(), loader(2, seed=2), ckpt_path=path)
        assert torch.equal(predictions[0], model(next(iter(loader(2, seed=2)))[0]))


def test_the_modules_own_hook_may_rename_and_a_part_may_be_loaded_by_hand(tmp_path):
    path, model = small(tmp_path)

    class Renamed(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Model()

        def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["state_dict"] = {f"net.{name}": value for name, value in checkpoint["state_dict"].items()}

    assert_same(weights(Renamed.load_from_checkpoint(path).net), weights(model))
    encoder = Model().encoder
    state = content(path)["state_dict"]
    encoder.load_state_dict({k.removeprefix("encoder."): v for k, v in state.items() if k.startswith("encoder.")})
    assert_same(weights(encoder), weights(model.encoder))


def test_earlier_checkpoints_can_be_loaded_into_the_module_that_was_trained_on(tmp_path):
    best = ModelCheckpoint(tmp_path, monitor="val_loss", save_top_k=-1, filename="{step}")
    gradual = GradualUnfreezing(EpochTrigger(1), layers_per_phase=2, verbose=False, save_frozen=False)
    the_trainer, model = run(gradual, best, enable_checkpointing=True)
    paths = sorted(tmp_path.glob("*.ckpt"), key=step_of)
    assert [len(omitted(path)) > 0 for path in paths] == [True, True, True]
    for path in (paths[0], paths[2], paths[1]):
        the_trainer.test(model, loader(2, seed=2), ckpt_path=path, verbose=False)
        assert_same(weights(model), weights(Model.load_from_checkpoint(path)))
    # After a resume, too.
    recorder = GradualUnfreezing(EpochTrigger(1), layers_per_phase=2, verbose=False, save_frozen=False)
    the_trainer, model = run(recorder, ckpt_path=paths[1])
    the_trainer.test(model, loader(2, seed=2), ckpt_path=paths[0], verbose=False)
    assert_same(weights(model), weights(Model.load_from_checkpoint(paths[0])))


def test_saved_after_the_fit_and_the_trainer_used_again(tmp_path):
    the_trainer, model = run(freezing(), max_epochs=1)
    for weights_only in (False, True):
        the_trainer.save_checkpoint(tmp_path / "a.ckpt", weights_only=weights_only)
        assert {layer_of(name) for name in omitted(tmp_path / "a.ckpt")} == FROZEN
    the_trainer.fit_loop.max_epochs = 2
    the_trainer.fit(model, StatefulLoader(4))
    the_trainer.save_checkpoint(tmp_path / "b.ckpt")
    assert {layer_of(name) for name in omitted(tmp_path / "b.ckpt")} == FROZEN
    assert_same(weights(Model.load_from_checkpoint(tmp_path / "b.ckpt")), weights(model))


def test_a_trainer_whose_callbacks_no_longer_ask_for_it_saves_whole_checkpoints(tmp_path):
    the_trainer, model = run(freezing(), max_epochs=1)
    for epochs, save in ((2, True), (3, False)):
        the_trainer.callbacks = [LayerFreezing("embeddings,:", verbose=False, save_frozen=save)]
        the_trainer.fit_loop.max_epochs = epochs
        the_trainer.fit(model, StatefulLoader(4))
        the_trainer.save_checkpoint(tmp_path / "a.ckpt")
        assert {layer_of(name) for name in omitted(tmp_path / "a.ckpt")} == (set() if save else FROZEN)


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_a_module_in_half_precision(tmp_path, precision):
    sgd = {"make_optimizers": lambda module: torch.optim.SGD(module.parameters(), lr=0.01)}
    model = Model(**sgd).float()
    the_trainer, _ = run(freezing(), module=model, max_epochs=1, precision=precision)
    whole = weights(model)
    the_trainer.save_checkpoint(tmp_path / "a.ckpt")
    assert omitted(tmp_path / "a.ckpt")
    loaded = Model().float()
    loaded.load_state_dict(content(tmp_path / "a.ckpt")["state_dict"])
    expected = Model().float()
    expected.load_state_dict(whole)
    assert_same(weights(loaded), weights(expected))


@pytest.mark.fast_cases(1, "averaging")
@pytest.mark.filterwarnings("ignore:.*Swapping scheduler", "ignore:.*`SWALR`")
@pytest.mark.parametrize(
    "make",
    [lambda: StochasticWeightAveraging(0.01, swa_epoch_start=1), lambda: LearningRateFinder(num_training_steps=5)],
    ids=["averaging", "finder"],
)
def test_beside_averaging_and_the_finder(tmp_path, make):
    finds = isinstance(make(), LearningRateFinder)
    for kind, save in (("small", False), ("whole", True)):
        model = Model(make_optimizers=adamw)
        model.lr = 0.01
        run(*SCHEDULES["part"](save), make(), module=model, path=tmp_path / kind, default_root_dir=tmp_path)
    for path in sorted((tmp_path / "small").glob("*.ckpt"), key=step_of)[:-1:2]:
        assert len(omitted(path)) == 9
        results = []
        for kind in ("small", "whole"):
            others = [] if finds else [make()]
            resumed, model = run(*SCHEDULES["part"](), *others, ckpt_path=tmp_path / kind / path.name)
            results.append((weights(model), resumed.optimizers[0].state_dict()))
        assert_same(*results)


def test_a_trainer_can_be_copied_and_used_for_another_module_after_a_fit(tmp_path):
    the_trainer, model = run(freezing(), max_epochs=1)
    copy.deepcopy(the_trainer).save_checkpoint(tmp_path / "a.ckpt")
    assert_same(weights(Model.load_from_checkpoint(tmp_path / "a.ckpt")), weights(model))
    # The other one was built with other weights, and has these only by chance.
    other = Model(base=5)
    other.load_state_dict(weights(model))
    the_trainer.validate(other, loader(2), verbose=False)
    the_trainer.save_checkpoint(tmp_path / "b.ckpt")
    assert not omitted(tmp_path / "b.ckpt")


# ------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("command", ["fit", "test", "validate", "predict"])
def test_other_base_weights_are_refused_by_name(tmp_path, command):
    path, _ = small(tmp_path)
    model = Model(base=7, make_optimizers=adamw)
    the_trainer = trainer(freezing())
    with pytest.raises(ConfigurationError) as error:
        getattr(the_trainer, command)(model, loader(2, seed=2), ckpt_path=path)
    for words in ("base weights are others", "embeddings, 0, 1 and 2 more", "encoder.embeddings.weight", "merge-ch"):
        assert words in str(error.value)
    assert "save_checkpoint" not in vars(the_trainer.strategy) or command == "fit"
    assert "load_model_state_dict" not in vars(the_trainer.strategy)


def test_one_other_weight_is_refused_without_the_callbacks_and_with_strict_off(tmp_path):
    path, _ = small(tmp_path)

    class Other(Model):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.encoder.layers[2].linear.bias.data[0] += 1e-6

    for strict in (True, False):
        with pytest.raises(ConfigurationError, match=r"^The checkpoint .* frozen layer '2'.* base weights are others"):
            Other.load_from_checkpoint(path, strict=strict)
    with pytest.raises(ConfigurationError, match="base weights are others"):
        trainer().test(Other(), loader(2, seed=2), ckpt_path=path, verbose=False)


@pytest.mark.filterwarnings("ignore:.*to a meta parameter in the current model")
def test_a_smaller_dtype_meta_weights_and_assignment_are_refused(tmp_path):
    path, _ = small(tmp_path)
    state = content(path)["state_dict"]
    with pytest.raises(ConfigurationError, match=r"fewer bits: torch.float16 in place of torch.float64"):
        Model().half().load_state_dict(state)
    with pytest.raises(ConfigurationError, match="cannot be compared"), torch.device("meta"):
        Model().load_state_dict(state)
    with pytest.raises(RuntimeError, match="not in the checkpoint"):
        Model().load_state_dict(state, assign=True)


def test_a_checkpoint_that_is_read_by_hand_says_what_it_lacks(tmp_path):
    path, _ = small(tmp_path)
    weight = content(path)["state_dict"]["encoder.embeddings.weight"]
    assert weight.shape == (16, 8) and weight.numel() == 128 and weight.dtype == torch.float64
    assert weight.dim() == weight.ndim == 2
    assert copy.deepcopy(weight) == weight == pickle.loads(pickle.dumps(weight))
    for use in (lambda: weight.sum(), lambda: torch.ones(16, 8) + weight, lambda: torch.stack([weight])):
        with pytest.raises((AttributeError, ConfigurationError), match=r"frozen layer 'embeddings' is not in the ch"):
            use()


def test_strategies_that_write_their_own_form_save_whole_checkpoints_and_say_so_once(tmp_path):
    class Own(SingleDeviceStrategy):
        def save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
            super().save_checkpoint(*args, **kwargs)

    for sharded in (FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy, Own):
        assert saves_whole_weights(sharded.__new__(sharded))
    assert not saves_whole_weights(DDPStrategy())
    with pytest.warns(UserWarning, match=r"save_frozen=False\) has no effect under Own") as caught:
        path, _ = small(tmp_path, strategy=Own("cpu"), max_epochs=1)
    assert sum("save_frozen" in str(warning.message) for warning in caught) == 1
    assert not omitted(path)


@pytest.mark.parametrize("cls", [GradualUnfreezing, ULMFiT, LinearProbeThenFineTune, ChainThaw])
def test_each_schedule_takes_the_option(cls, tmp_path):
    options = {"restore_best": False} if cls is ChainThaw else {}
    schedule = cls(EpochTrigger(9), verbose=False, save_frozen=False, **options)
    path, model = small(tmp_path, schedule, max_epochs=1)
    assert {layer_of(name) for name in omitted(path)} == FROZEN
    assert_same(weights(Model.load_from_checkpoint(path)), weights(model))
    with pytest.raises(ConfigurationError, match="save_frozen"):
        cls(EpochTrigger(9), save_frozen="no", **options)


def test_a_module_is_not_kept_alive(tmp_path):
    import gc
    import weakref

    _, model = small(tmp_path, *SCHEDULES["steps"]())
    reference = weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None


@pytest.mark.slow
def test_a_process_that_has_not_imported_the_package(tmp_path):
    path, _ = small(tmp_path)
    code = (
        "import sys, torch\n"
        "try:\n    torch.load(sys.argv[1])\nexcept Exception as error:\n    print(error)\n"
        "print(len(torch.load(sys.argv[1], weights_only=False)['state_dict']))\n"
        "print(type(torch.load(sys.argv[1])['state_dict']['encoder.embeddings.weight']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, timeout=120, check=True)
    assert "GLOBAL lightning_freeze.checkpoints.OmittedWeight was not an allowed global by default" in done.stdout
    assert done.stdout.splitlines()[-2:] == ["20", "<class 'lightning_freeze.checkpoints.OmittedWeight'>"]
