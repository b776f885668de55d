"""The command line, from flags and from YAML, through real runs."""

from __future__ import annotations

import csv
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from reviews import make_reviews, save_csv

from lightning_freeze.cli import command_line

QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu"]


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_bert_dir: Path) -> Path:
    """Run in an empty folder that holds reviews.csv and the model folder ``tiny``, as a user would."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning-freeze"])
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    Path("tiny").symlink_to(tiny_bert_dir)
    save_csv(Path("reviews.csv"), make_reviews())
    return tmp_path


FIT = ["--model.encoder=./tiny", "--model.task=classification", "--data.data=reviews.csv"]


def fit(*more: str) -> None:
    command_line.main(["fit", *FIT, "--data.text=text", "--data.label=label", "--trainer.max_epochs=1", *QUIET, *more])


def checkpoint() -> str:
    return str(next(Path("lightning_logs/version_0/checkpoints").glob("*.ckpt")))


def fails(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    with pytest.raises(SystemExit) as error:
        command_line.main([*args, *QUIET])
    assert error.value.code == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message


def test_from_a_csv_file_to_an_accuracy(capsys: pytest.CaptureFixture[str]) -> None:
    fit()
    said = capsys.readouterr().out.splitlines()
    assert said[-2] == f"best checkpoint: {checkpoint()}"
    # The command it names works as it stands.
    command = said[-1].removeprefix("test it: lightning-freeze ").split()
    command_line.main([*command, *QUIET])
    last = capsys.readouterr().out.splitlines()[-1]
    with open("lightning_logs/version_1/metrics.csv") as file:
        accuracy = float(next(csv.DictReader(file))["test_accuracy"])
    assert last.startswith(f"test accuracy {accuracy:.3f} (majority class 0.")


@pytest.mark.slow
def test_no_test_is_proposed_where_there_are_no_test_rows(capsys: pytest.CaptureFixture[str]) -> None:
    fit("--data.split=[0.8, 0.2, 0.0]")
    assert capsys.readouterr().out.splitlines()[-1] == f"best checkpoint: {checkpoint()}"


def test_more_workers_than_any_machine_has_use_for(capsys: pytest.CaptureFixture[str]) -> None:
    message = fails(capsys, "fit", *FIT, "--data.num_workers=99999")
    assert "data.num_workers is 99999: expected at most" in message


@pytest.mark.slow
def test_prediction_needs_no_labels_but_those_in_the_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    fit()
    Path("new.csv").write_text("text\ngood film\nthe book is bad\n", encoding="utf-8")
    command_line.main(
        ["predict", "--model.encoder=./tiny", f"--ckpt_path={checkpoint()}", "--data.predict=new.csv", *QUIET]
    )
    path = capsys.readouterr().out.splitlines()[-1].removeprefix("predictions: ")
    rows = list(csv.DictReader(Path(path).read_text().splitlines()))
    assert [(row["line"], row["text"]) for row in rows] == [("2", "good film"), ("3", "the book is bad")]
    assert all(row["prediction"] in ("neg", "pos") and 0.5 <= float(row["probability"]) <= 1 for row in rows)
    assert not list(Path(path).parent.glob("*.part"))


@pytest.mark.slow
def test_validation_of_a_checkpoint_on_another_file() -> None:
    fit()
    save_csv(Path("other.csv"), make_reviews(9, seed=5))
    command_line.main(
        ["validate", "--model.encoder=./tiny", f"--ckpt_path={checkpoint()}", "--data.val=other.csv", *QUIET]
    )
    header = Path("lightning_logs/version_1/metrics.csv").read_text().splitlines()[0]
    assert "val_accuracy" in header


def test_a_run_says_nothing_that_it_need_not(recwarn: pytest.WarningsRecorder, caplog: Any) -> None:
    with caplog.at_level(logging.INFO):
        fit()
    assert not [str(w.message) for w in recwarn if "LeafSpec" not in str(w.message)]
    assert "seamless cloud" not in caplog.text


def test_a_short_config_and_print_config(capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.yaml").write_text(
        "model: {encoder: ./tiny, task: classification}\n"
        "data: {data: reviews.csv, group_column: author, batch_size: 4}\n"
        "trainer: {fast_dev_run: true}\n"
    )
    command_line.main(["fit", "--config=a.yaml", *QUIET])
    with pytest.raises(SystemExit) as done:
        command_line.main(["fit", "--config=a.yaml", "--print_config"])
    assert done.value.code == 0
    printed = capsys.readouterr().out
    config = yaml.safe_load(printed[printed.index("# lightning") :])
    assert config["model"]["encoder"] == "./tiny"
    assert config["data"]["init_args"]["batch_size"] == 4
    Path("b.yaml").write_text(yaml.safe_dump(config))
    command_line.main(["fit", "--config=b.yaml", *QUIET])


def seen(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Collect the trainers that the command builds."""
    trainers: list[Any] = []
    build = command_line.FreezeCLI.instantiate_trainer

    def instantiate(self: Any, **kwargs: Any) -> Any:
        trainers.append(build(self, **kwargs))
        return trainers[-1]

    monkeypatch.setattr(command_line.FreezeCLI, "instantiate_trainer", instantiate)
    return trainers


CALLBACKS: dict[str, dict[str, Any]] = {
    "LayerFreezing": {"layers": "embeddings,:2"},
    "GradualUnfreezing": {"trigger": {"class_path": "EpochTrigger", "init_args": {"n": 2}}},
    "DiscriminativeLR": {"decay": 0.8},
    "PhasedFineTuning": {
        "phases": [
            {"train": "head", "until": {"class_path": "StepTrigger", "init_args": {"n": 2}}},
            {"train": "-2:,head", "until": {"class_path": "PlateauTrigger", "init_args": {"monitor": "val_loss"}}},
            {"train": "all"},
        ]
    },
}
ANY_OF = {
    "trigger": {
        "class_path": "AnyTrigger",
        "init_args": {
            "triggers": [
                {"class_path": "EpochTrigger", "init_args": {"n": 1}},
                {"class_path": "PlateauTrigger", "init_args": {"monitor": "val_loss"}},
            ]
        },
    }
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*")
@pytest.mark.parametrize(
    ("name", "arguments"), [*CALLBACKS.items(), ("GradualUnfreezing", ANY_OF)], ids=[*CALLBACKS, "AnyTrigger"]
)
def test_callbacks_and_triggers_by_short_name(
    name: str, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainers = seen(monkeypatch)
    config = {"trainer": {"callbacks": [{"class_path": name, "init_args": arguments}], "max_epochs": 2}}
    Path("callbacks.yaml").write_text(yaml.safe_dump(config))
    command_line.main(["fit", *FIT, "--config=callbacks.yaml", *QUIET])
    assert name in [type(callback).__name__ for callback in trainers[0].callbacks]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*")
def test_the_rates_of_phases_from_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    trainers = seen(monkeypatch)
    phases = [
        {"train": "head", "until": {"class_path": "StepTrigger", "init_args": {"n": 1}}},
        {"train": "-2:,head", "lr": 0.5, "factors": {"head": 10}},
    ]
    callback = {"class_path": "PhasedFineTuning", "init_args": {"phases": phases}}
    Path("callbacks.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [callback], "max_epochs": 2}}))
    command_line.main(["fit", *FIT, "--config=callbacks.yaml", *QUIET])
    (schedule,) = [c for c in trainers[0].callbacks if type(c).__name__ == "PhasedFineTuning"]
    first, second = schedule.phases
    assert (first.lr, first.factors) == (1.0, None)
    assert (second.lr, second.factors) == (0.5, {"head": 10.0})
    # The saved configuration makes the same run.
    (saved,) = Path().rglob("config.yaml")
    command_line.main(["fit", f"--config={saved}"])
    (again,) = [c for c in trainers[1].callbacks if type(c).__name__ == "PhasedFineTuning"]
    assert again.phases == schedule.phases


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*")
def test_callbacks_and_triggers_from_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    trainers = seen(monkeypatch)
    flags = ["+=GradualUnfreezing", ".trigger=EpochTrigger", ".trigger.n=2", "+=DiscriminativeLR", ".decay=0.5"]
    fit(*[f"--trainer.callbacks{flag}" for flag in flags])
    found = {type(callback).__name__: callback for callback in trainers[0].callbacks}
    assert {"GradualUnfreezing", "DiscriminativeLR", "ModelCheckpoint"} <= set(found)
    assert found["DiscriminativeLR"].decay == 0.5


@pytest.mark.slow
def test_optimizer_and_scheduler_from_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    trainers = seen(monkeypatch)
    fit(
        "--model.optimizer=SGD",
        "--model.optimizer.lr=0.5",
        "--model.lr_scheduler=StepLR",
        "--model.lr_scheduler.step_size=1",
    )
    assert type(trainers[0].optimizers[0]).__name__ == "SGD"
    assert trainers[0].optimizers[0].param_groups[0]["initial_lr"] == 0.5
    fit("--model.optimizer.lr=0.25")
    assert type(trainers[1].optimizers[0]).__name__ == "AdamW"
    assert trainers[1].optimizers[0].param_groups[0]["initial_lr"] == 0.25


@pytest.mark.slow
def test_the_users_trainer_settings_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    trainers = seen(monkeypatch)
    fit("--trainer.logger=false", "--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.save_last=true")
    checkpoints = [c for c in trainers[0].callbacks if type(c).__name__ == "ModelCheckpoint"]
    assert len(checkpoints) == 1 and checkpoints[0].save_last
    assert trainers[0].logger is None
    command_line.main(["fit", *FIT, "--trainer.max_steps=2", "--trainer.default_root_dir=out", *QUIET])
    assert trainers[1].global_step == 2 and trainers[1].log_dir == "out/lightning_logs/version_0"
    command_line.main(["fit", *FIT, "--trainer.limit_train_batches=1", *QUIET])
    assert trainers[2].current_epoch == command_line.DEFAULT_EPOCHS


def test_resume_from_a_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    trainers = seen(monkeypatch)
    fit()
    steps = trainers[0].global_step
    command_line.main(["fit", *FIT, "--trainer.max_epochs=2", f"--ckpt_path={checkpoint()}", *QUIET])
    assert trainers[1].global_step == 2 * steps


@pytest.mark.slow
def test_own_data_module(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "own_images.py").write_text(
        "import torch\n"
        "from lightning.pytorch import LightningDataModule\n"
        "from torch.utils.data import DataLoader, TensorDataset\n"
        "class OwnImages(LightningDataModule):\n"
        "    num_classes, labels = 3, None\n"
        "    def train_dataloader(self):\n"
        "        return DataLoader(TensorDataset(torch.randn(6, 3, 8, 8), torch.arange(6) % 3), batch_size=3)\n"
    )
    from transformers import ViTConfig, ViTModel

    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ViTModel(ViTConfig(**size, image_size=8, patch_size=4)).save_pretrained(project / "vit")
    monkeypatch.syspath_prepend(project)
    model = ["--model.encoder=./vit", "--model.task=image-classification"]
    command_line.main(["fit", *model, "--data=own_images.OwnImages", "--trainer.max_epochs=1", *QUIET])


@pytest.mark.fast_cases(5)
@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["--model.encoder=./tyni", "--data.data=reviews.csv"], ["'./tyni' does not exist", "Did you mean 'tiny'"]),
        (["--model.encoder=./tiny", "--data.data=review.csv"], ["'review.csv' does not exist", "'reviews.csv'"]),
        ([*FIT, "--data.text=txt"], ["no column 'txt'", "Did you mean 'text'"]),
        ([*FIT, "--data.dta=x"], ["'dta'", "Did you mean 'data'"]),
        ([*FIT, "--model.encodr=x"], ["--model.encodr", "Did you mean 'model.encoder'"]),
        (["--model.encoder=./tiny", "--model.task=clasification"], ["Did you mean 'classification'"]),
        ([*FIT, "--data.batch_size=0"], ["data.batch_size is 0"]),
        ([*FIT, "--data.task=regression"], ["model.task is 'classification', but data.task is 'regression'"]),
        ([*FIT, "--ckpt_path=no.ckpt"], ["checkpoint 'no.ckpt' does not exist"]),
        ([*FIT, "--trainer.callbacks+=LayerFreezing", "--trainer.callbacks.layers=embedings"], ["'embeddings'"]),
        ([*FIT, "--trainer.callbacks+=GradualUnfreezing", "--trainer.callbacks.trigger=StepTrigger",
          "--trainer.callbacks.trigger.n=0"], ["0"]),
    ],
)  # fmt: skip
def test_a_wrong_setup_is_one_message(args: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    message = fails(capsys, "fit", *args)
    assert all(part in message for part in parts), message
    assert message.count("Did you mean") <= 1
    assert not list(Path().rglob("*.ckpt"))


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        int("not a number")

    monkeypatch.setattr(command_line, "FreezeCLI", broken)
    with pytest.raises(ValueError, match="invalid literal"):
        command_line.main(["fit"])


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNING_FREEZE_DEBUG", "1")
    with pytest.raises(ValueError, match=r"data\.batch_size is 0"):
        fit("--data.batch_size=0")


def test_an_untrained_head_is_a_warning() -> None:
    with pytest.warns(UserWarning, match="No --ckpt_path is given"):
        command_line.main(["test", *FIT, *QUIET])


def test_layers(capsys: pytest.CaptureFixture[str]) -> None:
    command_line.main(["layers", "./tiny"])
    said = capsys.readouterr().out
    assert all(word in said for word in ("embeddings", "encoder.layer.3", "head"))
    with pytest.raises(SystemExit) as error:
        command_line.main(["layers", "./tyni"])
    assert error.value.code == 2 and "tiny" in capsys.readouterr().err


@pytest.mark.slow
def test_the_installed_command_runs_as_a_process() -> None:
    command = [
        sys.executable,
        "-m",
        "lightning_freeze.cli",
        "fit",
        *FIT,
        "--trainer.fast_dev_run=true",
        *QUIET,
    ]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr and "seamless" not in done.stderr


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("reviews.csv", "'reviews.csv' is not a checkpoint that can be read"),
        ("tiny", "'tiny' is the folder of a model"),
    ],
)
def test_a_checkpoint_that_is_none(path: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert words in fails(capsys, "test", "--model.encoder=./tiny", "--data.test=reviews.csv", f"--ckpt_path={path}")


@pytest.mark.slow
def test_token_predictions_are_one_tag_for_each_token() -> None:
    rows = [
        {"tokens": ["good", "unfilmable", "book"][: 1 + i % 3], "tags": ["O", "X", "O"][: 1 + i % 3]} for i in range(12)
    ]
    Path("tags.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = ["--model.encoder=./tiny", "--model.task=token-classification", "--data.text=tokens", *QUIET]
    command_line.main(["fit", *task, "--data.label=tags", "--data.data=tags.jsonl", "--trainer.max_epochs=1"])
    command_line.main(["predict", *task, f"--ckpt_path={checkpoint()}", "--data.predict=tags.jsonl"])
    (predicted,) = Path("lightning_logs").glob("*/predictions.jsonl")
    records = [json.loads(line) for line in predicted.read_text().splitlines()]
    assert [len(record["prediction"]) for record in records] == [len(row["tokens"]) for row in rows]
