"""What a checkpoint holds of a module in which only a part is loaded by transformers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from frozen_runs import assert_same, omitted
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from toys import loader, trainer, weights
from transformers import BertConfig, BertModel

from lightning_freeze import LayerFreezing

pytestmark = pytest.mark.filterwarnings("ignore:.*head", "ignore:.*the first layer that trains")


class Backbone(nn.Module):
    def __init__(self, folder: str) -> None:
        super().__init__()
        self.bert = BertModel.from_pretrained(folder, add_pooling_layer=False)
        self.register_buffer("noise", torch.randn(16))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.bert(input_ids=tokens).last_hidden_state + 0.01 * self.noise


class Necked(LightningModule):
    """A loaded model with random layers and a random parameter beside it."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.backbone = Backbone(folder)
        self.neck = nn.Linear(16, 16)
        nn.init.xavier_uniform_(self.neck.weight)
        self.lstm = nn.LSTM(16, 16, batch_first=True)
        self.query = nn.Parameter(torch.randn(16))
        self.head = nn.Linear(16, 2)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        hidden = self.lstm(self.neck(self.backbone(batch[0])))[0]
        return nn.functional.cross_entropy(self.head((hidden * self.query).sum(1)), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


GROUPS = {"bert": "backbone", "beside": ["neck", "lstm", "query"], "head": "head"}


@pytest.fixture
def folder(tmp_path: Path) -> str:
    torch.manual_seed(3)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=30, **sizes), add_pooling_layer=False).save_pretrained(tmp_path / "bert")
    return str(tmp_path / "bert")


def fit(module: LightningModule, **options: Any) -> Trainer:
    frozen = LayerFreezing("bert,beside", groups=GROUPS, verbose=False, save_frozen=False)
    the_trainer = trainer(frozen, **{"max_epochs": 1, **options})
    the_trainer.fit(module, loader())
    return the_trainer


def loaded_weights(module: LightningModule) -> set[str]:
    return {name for name, _ in module.named_parameters() if name.startswith("backbone.bert.")}


def test_random_weights_beside_a_loaded_model_are_saved(folder: str, tmp_path: Path) -> None:
    model = Necked(folder)
    fit(model).save_checkpoint(tmp_path / "a.ckpt")
    assert omitted(tmp_path / "a.ckpt") == loaded_weights(model)
    torch.manual_seed(torch.seed())  # a process of its own, which has another seed
    assert_same(weights(Necked.load_from_checkpoint(tmp_path / "a.ckpt")), weights(model))


def test_a_module_without_marks_leaves_out_all_that_is_frozen(folder: str, tmp_path: Path) -> None:
    model = copy.deepcopy(Necked(folder))
    fit(model).save_checkpoint(tmp_path / "a.ckpt")
    assert omitted(tmp_path / "a.ckpt") == set(weights(model)) - {"head.weight", "head.bias"}


@pytest.mark.parametrize(
    "options",
    [
        {"max_steps": 1},
        pytest.param({"max_epochs": 1, "strategy": "ddp_fork", "devices": 1}, marks=pytest.mark.slow),
    ],
    ids=["one step", "in another process"],
)
def test_loaded_weights_that_a_fit_without_callbacks_trained_are_saved(
    folder: str, tmp_path: Path, options: dict[str, Any]
) -> None:
    class Trained(Necked):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            trains = [*self.backbone.bert.encoder.parameters(), *self.head.parameters()]
            return torch.optim.SGD(trains, lr=0.1)

    model = Trained(folder)
    trainer(**options).fit(model, loader())
    fit(model).save_checkpoint(tmp_path / "a.ckpt")
    left_out = omitted(tmp_path / "a.ckpt")
    assert not [name for name in left_out if ".encoder." in name]
    # The main process loads all weights that another one has trained.
    assert bool(left_out) == ("strategy" not in options)
    assert_same(weights(Necked.load_from_checkpoint(tmp_path / "a.ckpt")), weights(model))
