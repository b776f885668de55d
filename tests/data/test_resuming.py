"""A fit that is resumed in mid-epoch reads the batches that the straight one would have read."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
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
    tiny: Path, data: Path, folder: Path, ckpt_path: str | None = None, workers: int = 0, **settings: Any
) -> tuple[TransformerModule, list[tuple[int, list[int]]]]:
    seed_everything(0)
    config = BertConfig.from_pretrained(tiny, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=2)
    module = TransformerModule(BertForSequenceClassification(config), labels=["no", "yes"])
    texts = TextDataModule(str(tiny), train=str(data), batch_size=4, num_workers=workers, seed=3)
    rows, saving = Rows(), ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)
    schedule = GradualUnfreezing(trigger=EpochTrigger(1), layers_per_phase=3, verbose=False)
    trainer = Trainer(callbacks=[rows, saving, schedule], **{"max_epochs": 3, **QUIET, **settings})
    trainer.fit(module, texts, ckpt_path=ckpt_path, weights_only=False)
    return module, rows.seen


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    rows = [f"{'good' if i % 2 else 'bad'} film number {i},{'yes' if i % 2 else 'no'}" for i in range(20)]
    path.write_text("\n".join(["text,label", *rows]) + "\n")
    return path


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


@pytest.mark.parametrize("settings", [{"limit_train_batches": 3}, {"overfit_batches": 3}])
@pytest.mark.filterwarnings("ignore:You requested to overfit")
def test_an_epoch_that_is_cut_short_is_followed_by_a_whole_one(
    settings: dict[str, Any], data: Path, tiny_bert_dir: Path, tmp_path: Path
) -> None:
    _, rows = fit(tiny_bert_dir, data, tmp_path / "straight", **settings)
    assert len(rows) == 9
    _, rest = fit(tiny_bert_dir, data, tmp_path / "resumed", str(tmp_path / "straight" / "step=3.ckpt"), **settings)
    assert rest == rows[3:]


@pytest.mark.slow
def test_worker_processes_read_the_same(data: Path, tiny_bert_dir: Path, tmp_path: Path) -> None:
    _, rows = fit(tiny_bert_dir, data, tmp_path / "straight")
    _, same = fit(tiny_bert_dir, data, tmp_path / "workers", workers=2)
    assert same == rows
    _, rest = fit(tiny_bert_dir, data, tmp_path / "resumed", str(tmp_path / "workers" / "step=7.ckpt"), workers=2)
    assert rest == rows[7:]
