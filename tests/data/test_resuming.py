"""A fit that is resumed in mid-epoch reads the batches that the straight one would have read."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from transformers import BertConfig, BertForSequenceClassification

from lightning_freeze import EpochTrigger, GradualUnfreezing, TextDataModule, TransformerModule

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}


class Rows(Callback):
    """Keeps the rows of each training batch, with its epoch."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, list[int]]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.seen.append((trainer.current_epoch, batch["index"].tolist()))


def fit(
    tiny: Path,
    data: Path,
    folder: Path,
    ckpt_path: str | None = None,
    workers: int = 0,
    others: Sequence[Callback] = (),
    val: bool = False,
    saves_epochs: bool = False,
    **settings: Any,
) -> tuple[TransformerModule, list[tuple[int, list[int]]]]:
    seed_everything(0)
    config = BertConfig.from_pretrained(tiny, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=2)
    module = TransformerModule(BertForSequenceClassification(config), labels=["no", "yes"])
    files = {"train": str(data), **({"val": str(data)} if val else {})}
    texts = TextDataModule(str(tiny), **files, batch_size=4, num_workers=workers, seed=3)
    often = {"every_n_epochs": 1, "save_on_train_epoch_end": True} if saves_epochs else {"every_n_train_steps": 1}
    rows, saving = Rows(), ModelCheckpoint(folder, "{step}", save_top_k=-1, **often)
    schedule = GradualUnfreezing(trigger=EpochTrigger(1), layers_per_phase=3, verbose=False)
    trainer = Trainer(callbacks=[rows, saving, schedule, *others], **{"max_epochs": 3, **QUIET, **settings})
    trainer.fit(module, texts, ckpt_path=ckpt_path, weights_only=False)
    return module, rows.seen


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    rows = [f"{'good' if i % 2 else 'bad'} film number {i},{'yes' if i % 2 else 'no'}" for i in range(20)]
    path.write_text("\n".join(["text,label", *rows]) + "\n")
    return path


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("step", [1, 3, 5, 7, 10])
def test_a_resumed_fit_reads_the_rest_of_the_epoch(step: int, data: Path, tiny_bert_dir: Path, tmp_path: Path) -> None:
    straight, rows = fit(tiny_bert_dir, data, tmp_path / "straight")
    assert len(rows) == 15 and rows[0][1] != rows[5][1], "each epoch has its own order"
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*your dataloader is not resumable.*")
        resumed, rest = fit(tiny_bert_dir, data, tmp_path / "resumed", str(tmp_path / "straight" / f"step={step}.ckpt"))
    assert rest == rows[step:]
    for name, weight in straight.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("settings", [{"limit_train_batches": 3}, {"overfit_batches": 3}])
@pytest.mark.parametrize("step", [2, 3])
@pytest.mark.filterwarnings("ignore:You requested to overfit")
def test_epochs_that_are_cut_short(
    step: int, settings: dict[str, Any], data: Path, tiny_bert_dir: Path, tmp_path: Path
) -> None:
    _, rows = fit(tiny_bert_dir, data, tmp_path / "straight", **settings)
    assert len(rows) == 9
    checkpoint = str(tmp_path / "straight" / f"step={step}.ckpt")
    _, rest = fit(tiny_bert_dir, data, tmp_path / "resumed", checkpoint, **settings)
    assert rest == rows[step:]


def test_a_run_that_max_steps_has_ended_goes_on_with_the_rest_of_the_epoch(
    data: Path, tiny_bert_dir: Path, tmp_path: Path
) -> None:
    _, rows = fit(tiny_bert_dir, data, tmp_path / "straight", max_epochs=3)
    ended = {"max_epochs": -1, "max_steps": 12}
    fit(tiny_bert_dir, data, tmp_path / "ended", saves_epochs=True, **ended)
    longer = {"max_epochs": -1, "max_steps": 15}
    _, rest = fit(tiny_bert_dir, data, tmp_path / "longer", str(tmp_path / "ended" / "step=12.ckpt"), **longer)
    assert [batch for _, batch in rest] == [batch for _, batch in rows[12:]]


class Fails(Callback):
    """Ends the run in a batch that has been read and not been trained on."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 7:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_the_batch_in_which_a_run_has_failed_is_read_again(data: Path, tiny_bert_dir: Path, tmp_path: Path) -> None:
    straight, rows = fit(tiny_bert_dir, data, tmp_path / "straight", val=True)
    saving = OnExceptionCheckpoint(tmp_path / "failed", "failed")
    with pytest.raises(BaseException):  # noqa: B017  (Lightning ends the process where it is interrupted)
        fit(tiny_bert_dir, data, tmp_path / "failed", None, 0, [Fails(), saving], val=True)
    resumed, rest = fit(tiny_bert_dir, data, tmp_path / "resumed", str(tmp_path / "failed" / "failed.ckpt"), val=True)
    assert rest == rows[7:]
    for name, weight in straight.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name


def test_a_test_of_a_checkpoint_leaves_the_training_data_alone(data: Path, tiny_bert_dir: Path, tmp_path: Path) -> None:
    fit(tiny_bert_dir, data, tmp_path)
    texts = TextDataModule(str(tiny_bert_dir), train=str(data), test=str(data), batch_size=4)
    module = TransformerModule(str(tiny_bert_dir), labels=["no", "yes"])
    trainer = Trainer(**QUIET)
    trainer.test(module, texts, ckpt_path=str(tmp_path / "step=3.ckpt"), weights_only=False, verbose=False)
    texts.setup("fit")
    assert len(list(texts.train_dataloader())) == 5


@pytest.mark.slow
def test_worker_processes_read_the_same(data: Path, tiny_bert_dir: Path, tmp_path: Path) -> None:
    _, rows = fit(tiny_bert_dir, data, tmp_path / "straight")
    _, same = fit(tiny_bert_dir, data, tmp_path / "workers", workers=2)
    assert same == rows
    _, rest = fit(tiny_bert_dir, data, tmp_path / "resumed", str(tmp_path / "workers" / "step=7.ckpt"), workers=2)
    assert rest == rows[7:]
