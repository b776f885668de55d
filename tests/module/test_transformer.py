"""TransformerModule through real training runs, one for each kind of task and encoder."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.cli import ReduceLROnPlateau
from reviews import make_reviews, save_csv
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import AutoModelForSequenceClassification

from lightning_freeze import FreezeOut, GradualUnfreezing, ULMFiT
from lightning_freeze.data import TextDataModule
from lightning_freeze.module import TransformerModule
from lightning_freeze.run_warnings.record import warnings_of


def trainer(folder: Path, **settings: Any) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    defaults = {"max_epochs": 1, "enable_checkpointing": False, "accelerator": "cpu"}
    return Trainer(default_root_dir=folder, **{**quiet, **defaults, **settings})


def text_data(folder: Path, encoder: Path, task: str, **settings: Any) -> TextDataModule:
    """Data of 16 rows for any text task, used for training, validation and test alike."""
    rows: list[dict[str, Any]] = []
    for i, row in enumerate(make_reviews(16)):
        words = str(row["text"]).split()
        rows.append(
            {
                "text": row["text"],
                "label": i / 10 if task == "regression" else row["label"],
                "other": "the film is good",
                "fun": i % 2,
                "sad": i % 3 == 0,
                "tokens": words,
                "tags": ["X" if len(word) > 3 else "O" for word in words],
                "source": row["text"],
                "target": row["label"],
            }
        )
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    columns: dict[str, Any] = {
        "pair-classification": {"text_pair": "other"},
        "multilabel": {"label": ["fun", "sad"]},
    }.get(task, {})
    files = dict.fromkeys(("train", "val", "test", "predict"), str(path))
    return TextDataModule(str(encoder), task, **{**files, **columns, "batch_size": 4, **settings})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("task", "metrics"),
    [
        ("classification", {"accuracy", "f1"}),
        ("pair-classification", {"accuracy", "f1"}),
        ("multilabel", {"accuracy", "f1"}),
        ("regression", {"mse", "mae", "pearson"}),
        ("token-classification", {"accuracy", "f1"}),
        ("causal-lm", {"perplexity"}),
        ("seq2seq-lm", {"perplexity"}),
    ],
)
def test_every_text_task_trains_tests_and_predicts(
    task: Any, metrics: set[str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    name = {"causal-lm": "tiny_gpt2_dir", "seq2seq-lm": "tiny_t5_dir"}.get(task, "tiny_bert_dir")
    encoder: Path = request.getfixturevalue(name)
    data = text_data(tmp_path, encoder, task)
    generates = {"generate_kwargs": {"max_new_tokens": 3}} if task.endswith("-lm") else {}
    model = TransformerModule(str(encoder), task, data.num_classes, data.labels, **generates)
    runner = trainer(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*LeafSpec.*|.*many workers.*|.*logging interval.*")
        runner.fit(model, data)
        expected = {"train_loss", "val_loss"} | {f"val_{metric}" for metric in metrics}
        assert set(runner.callback_metrics) == expected
        assert all(torch.isfinite(value) for value in runner.callback_metrics.values())
        results = runner.test(model, data, verbose=False)[0]
        assert set(results) == {"test_loss"} | {f"test_{metric}" for metric in metrics}
        outputs = runner.predict(model, data)
    assert outputs is not None
    assert [i for output in outputs for i in output["index"].tolist()] == list(range(16))
    assert all(len(output["predictions"]) == 4 for output in outputs)
    if data.labels and task != "multilabel":
        names = [
            name for output in outputs for row in output["labels"] for name in ([row] if row in data.labels else row)
        ]
        assert set(names) <= set(data.labels)


@pytest.mark.fast_cases(2, "path")
@pytest.mark.parametrize("encoder", ["path", "path and pooling", "model", "bare module"])
def test_training_learns(encoder: str, tmp_path: Path, tiny_bert_dir: Path) -> None:
    seed_everything(1)
    rows = [
        {"text": f"the {word} film", "label": word in ("good", "great")} for word in ("good", "bad", "great", "awful")
    ]
    path = str(save_csv(tmp_path / "a.csv", rows * 8))
    data = TextDataModule(str(tiny_bert_dir), train=path, val=path)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
    bare = nn.Sequential(nn.Embedding(60, 16), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))
    stored = AutoModelForSequenceClassification.from_pretrained(tiny_bert_dir, num_labels=2)
    encoders: dict[str, Any] = {"model": stored, "bare module": bare}
    model = TransformerModule(
        encoders.get(encoder, str(tiny_bert_dir)),
        num_classes=2,
        pooling="mean" if encoder == "path and pooling" else None,
        optimizer=lambda params: torch.optim.AdamW(params, lr=1e-2),
    )
    runner = trainer(tmp_path, max_epochs=30, check_val_every_n_epoch=30)
    runner.fit(model, data)
    assert runner.callback_metrics["val_accuracy"] == 1.0


def test_images(tmp_path: Path, tiny_vit_dir: Path) -> None:
    images = DataLoader(TensorDataset(torch.randn(8, 3, 8, 8), torch.arange(8) % 3), batch_size=4)
    model = TransformerModule(str(tiny_vit_dir), "image-classification", num_classes=3)
    runner = trainer(tmp_path)
    runner.fit(model, images, images)
    assert "val_accuracy" in runner.callback_metrics
    assert runner.predict(model, DataLoader(torch.randn(4, 3, 8, 8), batch_size=4))[0]["predictions"].shape == (4,)


def test_a_checkpoint_loads_with_the_names_of_the_classes(tmp_path: Path, tiny_bert_dir: Path) -> None:
    data = text_data(tmp_path, tiny_bert_dir, "classification")
    model = TransformerModule(str(tiny_bert_dir), "classification", data.num_classes, data.labels)
    runner = trainer(tmp_path, max_steps=1)
    runner.fit(model, data)
    runner.save_checkpoint(tmp_path / "a.ckpt", weights_only=False)
    loaded = TransformerModule.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert loaded.labels == ["neg", "pos"]
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name])


def test_a_checkpoint_around_a_module_needs_the_module(tmp_path: Path) -> None:
    def encoder() -> nn.Module:
        return nn.Sequential(nn.Embedding(5, 4))

    model = TransformerModule(encoder(), num_classes=2, hidden_size=4)
    runner = trainer(tmp_path, max_epochs=1)
    batches = DataLoader(TensorDataset(torch.ones(2, 3, dtype=torch.long), torch.tensor([0, 1])), batch_size=2)
    runner.fit(model, batches)
    runner.save_checkpoint(tmp_path / "a.ckpt")
    loaded = TransformerModule.load_from_checkpoint(tmp_path / "a.ckpt", encoder=encoder())
    assert torch.equal(loaded.model.classifier.weight, model.model.classifier.weight)  # type: ignore[union-attr, arg-type]


def configured(folder: Path, encoder: Path, **settings: Any) -> tuple[TransformerModule, Trainer]:
    model = TransformerModule(str(encoder), num_classes=2, **settings)
    model.model.requires_grad_(False)
    for parameter in model.model.classifier.parameters():  # type: ignore[union-attr]
        parameter.requires_grad_(True)
    runner = trainer(folder, max_epochs=2)
    runner.fit(model, text_data(folder, encoder, "classification"))
    return model, runner


def test_default_groups_hold_frozen_parameters_too(tmp_path: Path, tiny_bert_dir: Path) -> None:
    model, runner = configured(tmp_path, tiny_bert_dir)
    groups = runner.optimizers[0].param_groups
    assert [group["name"] for group in groups] == ["decay", "no_decay"]
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    scheduler = runner.lr_scheduler_configs[0]
    assert scheduler.interval == "step"
    assert [group["lr"] for group in groups] == [0.0, 0.0]


@pytest.mark.parametrize(
    ("callback", "schedulers"),
    [
        (FreezeOut(), 0),
        (ULMFiT(layers_per_phase=9), 0),
        (ULMFiT(layers_per_phase=9, ratio=1.0), 1),
        (GradualUnfreezing(layers_per_phase=9), 1),
    ],
)
def test_a_strategy_with_a_schedule_of_its_own_takes_the_place_of_the_default(
    callback: Callback, schedulers: int, tmp_path: Path, tiny_bert_dir: Path
) -> None:
    model = TransformerModule(str(tiny_bert_dir), num_classes=2)
    runner = trainer(tmp_path, max_epochs=2, callbacks=[callback])
    runner.fit(model, text_data(tmp_path, tiny_bert_dir, "classification"))
    assert len(runner.lr_scheduler_configs) == schedulers
    assert warnings_of(runner) == []


def test_schedulers_of_the_user(tmp_path: Path, tiny_bert_dir: Path) -> None:
    halve = configured(tmp_path, tiny_bert_dir, lr_scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, 1, 0.5))[1]
    assert halve.lr_scheduler_configs[0].interval == "epoch"
    assert halve.optimizers[0].param_groups[0]["lr"] == pytest.approx(5e-5 / 4)
    plateau = configured(tmp_path, tiny_bert_dir, lr_scheduler=lambda o: ReduceLROnPlateau(o, monitor="val_f1"))[1]
    assert plateau.lr_scheduler_configs[0].monitor == "val_f1"


def test_two_processes_train_together(tmp_path: Path, tiny_bert_dir: Path) -> None:
    data = text_data(tmp_path, tiny_bert_dir, "classification")
    model = TransformerModule(str(tiny_bert_dir), "classification", data.num_classes, pooling="mean")
    runner = trainer(tmp_path, strategy="ddp_fork", devices=2)
    runner.fit(model, data)
    assert runner.callback_metrics["val_loss"].isfinite()


class Named(nn.Module):
    """An encoder whose output has no logits and no hidden state."""

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        return {"x": input_ids}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"'classification' needs num_classes"),
        ({"num_classes": 1}, r"num_classes is 1: expected at least 2"),
        ({"num_classes": 3, "labels": ["a", "b"]}, r"num_classes is 3, but 2 labels"),
        ({"num_classes": 2, "task": "classifcation"}, r"Did you mean 'classification'"),
        ({"num_classes": 2, "warmup_ratio": 1.0}, r"warmup_ratio is 1\.0"),
        ({"num_classes": 2, "dropout": -0.1}, r"dropout is -0\.1"),
        ({"num_classes": 2, "encoder": "./no/such/folder"}, r"'\./no/such/folder' does not exist"),
        ({"num_classes": 2, "encoder": Named()}, r"hidden size of Named is unknown"),
    ],
)
def test_wrong_arguments(settings: dict[str, Any], message: str, tiny_bert_dir: Path) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        TransformerModule(**{"encoder": str(tiny_bert_dir), **settings})


def test_labels_are_needed_for_training(tmp_path: Path, tiny_bert_dir: Path) -> None:
    model = TransformerModule(str(tiny_bert_dir), num_classes=2)
    batches = DataLoader([{"input_ids": torch.ones(3, dtype=torch.long)}], batch_size=1)  # type: ignore[arg-type]
    with pytest.raises(MisconfigurationException, match=r"batch has no labels: expected the key 'labels'"):
        trainer(tmp_path).fit(model, batches)


def test_generation_gets_only_what_the_model_takes(tiny_t5_dir: Path) -> None:
    module = TransformerModule(str(tiny_t5_dir), task="seq2seq-lm", generate_kwargs={"max_new_tokens": 3})
    tokens = torch.randint(3, 20, (2, 5))
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "token_type_ids": torch.zeros_like(tokens)}
    trainer = Trainer(logger=False, enable_progress_bar=False, accelerator="cpu", enable_checkpointing=False)
    (output,) = trainer.predict(module, DataLoader([batch], batch_size=None))
    assert output["predictions"].shape[0] == 2


def test_pooling_over_an_encoder_decoder_takes_its_encoder(tiny_t5_dir: Path) -> None:
    module = TransformerModule(str(tiny_t5_dir), task="classification", num_classes=2, pooling="mean")
    tokens = torch.randint(3, 20, (2, 5))
    assert module(input_ids=tokens, attention_mask=torch.ones_like(tokens)).shape == (2, 2)
    assert not any("decoder" in name for name, _ in module.named_parameters())
