"""``TransformerModule`` and ``TextDataModule`` in Trainers of both of Lightning's import names."""

from __future__ import annotations

import copy
import pickle
import warnings
from inspect import getattr_static, isfunction
from pathlib import Path
from typing import Any

import lightning.pytorch
import lightning.pytorch.cli
import pytest
import pytorch_lightning
import pytorch_lightning.cli
import torch
from reviews import make_reviews, save_csv
from torch import Tensor, nn

from lightning_freeze import (
    DiscriminativeLR,
    EpochTrigger,
    FrozenPrefixCache,
    GradualUnfreezing,
    TextDataModule,
    TransformerModule,
)

NAMESPACES = [lightning.pytorch, pytorch_lightning]
DETERMINISTIC = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@pytest.fixture
def data(tmp_path: Path, tiny_bert_dir: Path) -> Any:
    file = str(save_csv(tmp_path / "reviews.csv", make_reviews(24)))
    files = dict.fromkeys(("train", "val", "test", "predict"), file)
    return lambda **options: TextDataModule(str(tiny_bert_dir), batch_size=4, seed=0, **{**files, **options})


@pytest.fixture
def module(tiny_bert_dir: Path) -> Any:
    def build() -> TransformerModule:
        torch.manual_seed(0)
        return TransformerModule(
            str(tiny_bert_dir), num_classes=2, labels=["neg", "pos"], model_kwargs=DETERMINISTIC
        ).double()

    return build


def trainer(namespace: Any, folder: Path, *callbacks: Any, **options: Any) -> Any:
    lightning.pytorch.seed_everything(0, verbose=False)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    settings = {"max_epochs": 3, "accelerator": "cpu", **quiet, **options}
    return namespace.Trainer(default_root_dir=folder, callbacks=list(callbacks), **settings)


def callbacks(namespace: Any, folder: Path, cached: bool) -> list[Any]:
    return [
        GradualUnfreezing(EpochTrigger(1), stop="2", verbose=False),
        DiscriminativeLR(0.5, verbose=False),
        *[FrozenPrefixCache(verbose=False)] * cached,
        namespace.callbacks.ModelCheckpoint(folder, save_top_k=-1, filename="{epoch}"),
        namespace.callbacks.GradientAccumulationScheduler({0: 1, 2: 2}),
    ]


def assert_same(left: Any, right: Any) -> None:
    torch.testing.assert_close(left, right, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize(("clip", "cached"), [("norm", False), ("value", True)])
def test_every_step_of_a_run_is_the_same_in_both(
    module: Any, data: Any, clip: str, cached: bool, tmp_path: Path
) -> None:
    def run(namespace: Any) -> Any:
        folder = tmp_path / namespace.__name__
        options = {"gradient_clip_val": 0.1, "gradient_clip_algorithm": clip}
        runner = trainer(namespace, folder, *callbacks(namespace, folder, cached), **options)
        model, texts = module(), data()
        runner.fit(model, texts)
        logged = {name: value for name, value in runner.logged_metrics.items() if "seconds" not in name}
        logged |= runner.validate(model, texts, verbose=False)[0] | runner.test(model, texts, verbose=False)[0]
        predictions = runner.predict(model, texts, return_predictions=True)
        resumed, weights = module(), copy.deepcopy(model.state_dict())
        again = trainer(namespace, folder, *callbacks(namespace, folder / "resumed", cached), **options)
        again.fit(resumed, data(), ckpt_path=folder / "epoch=0.ckpt", weights_only=False)
        # The cache of the resumed run was filled from other batches, for which kernels may round differently.
        torch.testing.assert_close(resumed.state_dict(), weights, rtol=0, atol=1e-12 if cached else 0)
        loaded = TransformerModule.load_from_checkpoint(folder / "epoch=2.ckpt", weights_only=False)
        assert_same(loaded.state_dict(), {name: value.float() for name, value in weights.items()})
        return runner.global_step, logged, [batch["probabilities"] for batch in predictions], weights

    assert_same(run(pytorch_lightning), run(lightning.pytorch))


@pytest.mark.slow
def test_two_processes_train_the_same_in_both(module: Any, data: Any, tmp_path: Path) -> None:
    def run(namespace: Any) -> Any:
        class Save(namespace.Callback):
            def on_train_end(self, trainer: Any, pl_module: Any) -> None:
                states = [trainer.strategy.broadcast(pl_module.state_dict(), src=rank) for rank in (0, 1)]
                assert_same(*states)
                torch.save((trainer.global_step, states[0]), path)

        path = tmp_path / f"{namespace.__name__}.pt"
        freezing = [GradualUnfreezing(EpochTrigger(1), stop="2", verbose=False), DiscriminativeLR(0.5, verbose=False)]
        options = {"strategy": "ddp_fork", "devices": 2, "enable_checkpointing": False, "num_sanity_val_steps": 0}
        trainer(namespace, tmp_path, *freezing, Save(), **options).fit(module(), data())
        return torch.load(path)

    steps, weights = run(pytorch_lightning)
    assert steps == 9
    assert_same((steps, weights), run(lightning.pytorch))


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_a_hook_counts_as_overridden_only_where_it_is(namespace: Any, module: Any, data: Any) -> None:
    is_overridden = namespace.utilities.model_helpers.is_overridden
    model, texts = module(), data()
    model.trainer = texts.trainer = trainer(namespace, Path())
    for built, base in ((model, namespace.LightningModule), (texts, namespace.LightningDataModule)):
        room = type(built).__module__.rpartition(".")[0]
        written = {name for cls in type(built).__mro__ if cls.__module__.startswith(room) for name in vars(cls)}
        for name in dir(base):
            if isfunction(getattr_static(base, name)) and not name.startswith("_") and not hasattr(nn.Module, name):
                assert is_overridden(name, built) == (name in written), name


@pytest.mark.slow
@pytest.mark.parametrize("namespace", NAMESPACES)
def test_a_module_of_either_namespace_holds_ours_and_is_held_by_it(
    namespace: Any, module: Any, data: Any, tmp_path: Path
) -> None:
    class Holder(namespace.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module()

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            assert self.inner.trainer is self.trainer
            logits = self.inner(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
            return nn.functional.cross_entropy(logits, batch["labels"])

        validation_step = training_step

        def configure_optimizers(self) -> Any:
            return self.inner.configure_optimizers()

    class Teacher(namespace.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(1, 1)

    class Held(TransformerModule):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            assert self.teacher.trainer is self.trainer
            return super().training_step(batch, batch_idx)

    holder, held = Holder(), Held(module().hparams["encoder"], num_classes=2)
    held.teacher = Teacher()
    for model in (holder, held):
        freezing = GradualUnfreezing(EpochTrigger(1), stop="2", verbose=False)
        trainer(namespace, tmp_path, freezing, enable_checkpointing=False).fit(model, data())
        assert freezing.stack is not None


def test_a_module_goes_from_one_namespace_to_the_other(module: Any, data: Any, tmp_path: Path) -> None:
    model, texts = module(), data()
    for namespace in (*NAMESPACES, *NAMESPACES):
        runner = trainer(namespace, tmp_path, enable_checkpointing=False, max_epochs=1)
        runner.fit(model, texts)
        assert runner.global_step == 6
        model = pickle.loads(pickle.dumps(model))


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_the_command_line_of_either_namespace_takes_both(
    namespace: Any, tiny_bert_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = save_csv(tmp_path / "reviews.csv", make_reviews(24))
    line = f"--model.encoder {tiny_bert_dir} --model.num_classes 2 --data.tokenizer {tiny_bert_dir} --data.data {file}"
    trainer_line = "--trainer.max_epochs 1 --trainer.logger false --trainer.accelerator cpu"
    callbacks_line = (
        "--trainer.callbacks+=GradualUnfreezing --trainer.callbacks.stop=head --trainer.callbacks.verbose=false"
    )
    monkeypatch.setattr("sys.argv", ["project.py"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        args = f"fit {line} {trainer_line} {callbacks_line}".split()
        cli = namespace.cli.LightningCLI(TransformerModule, TextDataModule, args=args)
    assert cli.trainer.global_step > 0
    assert isinstance(cli.trainer, namespace.Trainer)
