"""Arguments are checked in Python as the command line checks them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from reviews import make_reviews, save_csv
from torch import nn
from torch.optim.lr_scheduler import StepLR
from transformers import AutoModel, AutoModelForSequenceClassification

from lightning_freeze.data import TextDataModule
from lightning_freeze.module import PooledModel, TransformerModule
from lightning_freeze.module.tasks import get_task


def scheduler(optimizer: Any) -> StepLR:
    return StepLR(optimizer, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pooling": "max"}, r"pooling is 'max': expected None or one of 'mean', 'cls', 'last', 'none'"),
        ({"pooling": "men"}, r"Did you mean 'mean'"),
        ({"pooling": True}, r"pooling is True"),
        ({"labels": "positive"}, r"labels is 'positive': expected a list of names"),
        ({"labels": [0, 1]}, r"labels holds 0: expected names as strings, for example '0'"),
        ({"labels": ["a", "a"]}, r"labels holds 'a' twice"),
        ({"num_classes": "2"}, r"num_classes is '2': expected a whole number or None"),
        ({"num_classes": True}, r"num_classes is True"),
        ({"num_classes": 2.0}, r"num_classes is 2\.0"),
        ({"pretrained": "False"}, r"pretrained is 'False': expected True or False\. Did you mean False\?"),
        ({"pretrained": 1}, r"pretrained is 1"),
        ({"hidden_size": 0, "pooling": "cls"}, r"hidden_size is 0: expected at least 1"),
        ({"hidden_size": "16", "pooling": "cls"}, r"hidden_size is '16'"),
        ({"dropout": "0.1"}, r"dropout is '0\.1'"),
        ({"dropout": float("nan")}, r"dropout is nan"),
        ({"warmup_ratio": True}, r"warmup_ratio is True"),
        ({"warmup_ratio": None}, r"warmup_ratio is None"),
        ({"optimizer": "Adam"}, r"optimizer is 'Adam': expected a class or function that builds one"),
        ({"optimizer": torch.optim.SGD([nn.Parameter(torch.ones(1))])}, r"optimizer is a SGD"),
        ({"lr_scheduler": "cosine"}, r"lr_scheduler is 'cosine'"),
        ({"lr_scheduler_interval": "epochs"}, r"lr_scheduler_interval is 'epochs'.*Did you mean 'epoch'"),
        ({"model_kwargs": "eager"}, r"model_kwargs is 'eager': expected a dict"),
        ({"model_kwargs": {1: 2}}, r"model_kwargs is \{1: 2\}"),
        ({"generate_kwargs": ["x"]}, r"generate_kwargs is \['x'\]"),
        ({"generate_kwargs": {"top_k": 5}}, r"generate_kwargs=\{'top_k': 5\} has no effect: the task 'classification'"),
        ({"encoder": 3}, r"encoder is 3: expected a local folder"),
        ({"encoder": None}, r"encoder is None"),
        ({"task": ["classification"]}, r"Unknown task \['classification'\]"),
        # Without effect.
        ({"warmup_ratio": 0.3, "lr_scheduler": scheduler}, r"warmup_ratio=0\.3 has no effect.*lr_scheduler takes its"),
        ({"dropout": 0.3}, r"dropout=0\.3 has no effect: it is for the small head that pooling asks for"),
        ({"hidden_size": 16}, r"hidden_size=16 has no effect"),
        ({"pooling": "none"}, r"pooling is 'none'.*expected 'mean', 'cls' or 'last'"),
        ({"model_kwargs": {"num_labels": 3}}, r"model_kwargs holds 'num_labels': expected task, num_classes"),
        (
            {"model_kwargs": {"hidden_dropout_porb": 0.1}},
            r"'hidden_dropout_porb' is .*Did you mean 'hidden_dropout_p",
        ),
        ({"task": "regression"}, r"num_classes=2 has no effect: the task 'regression' has no classes"),
        ({"task": "regression", "num_classes": None, "labels": ["a", "b"]}, r"labels=\['a', 'b'\] has no effect"),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value),
)
def test_wrong_arguments_of_the_module(settings: dict[str, Any], message: str, tiny_bert_dir: Path) -> None:
    # What the annotation decides is worded in one place for all classes, the rest by the module.
    with pytest.raises(MisconfigurationException, match="|".join([message, *(f"{name}=" for name in settings)])):
        TransformerModule(**{"encoder": str(tiny_bert_dir), "num_classes": 2, **settings})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pretrained": False}, r"pretrained=False has no effect.*the encoder is a module"),
        ({"model_kwargs": {"dtype": "float32"}}, r"model_kwargs=.* has no effect"),
        ({"dropout": 0.2}, r"dropout=0\.2 has no effect: the encoder has a head of its own"),
        ({"pooling": "none", "hidden_size": 4}, r"hidden_size=4 has no effect: pooling='none' adds no head"),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value),
)
def test_arguments_without_effect_on_a_module(settings: dict[str, Any], message: str, tiny_bert_dir: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(tiny_bert_dir, num_labels=2)
    with pytest.raises(MisconfigurationException, match=message):
        TransformerModule(model, num_classes=2, **settings)


def test_right_arguments_in_other_forms(tiny_bert_dir: Path) -> None:
    folder = str(tiny_bert_dir)
    assert TransformerModule(folder, labels=("a", "b")).labels == ["a", "b"]  # type: ignore[arg-type]
    assert TransformerModule(folder, num_classes=2, dropout=0, pooling="cls").model.dropout.p == 0  # type: ignore[union-attr]
    assert TransformerModule(folder, "regression", num_classes=1).num_classes is None
    assert TransformerModule(tiny_bert_dir, num_classes=2).hparams["encoder"] == folder  # type: ignore[arg-type]


def test_an_interval_without_a_scheduler(tmp_path: Path, tiny_bert_dir: Path) -> None:
    module = TransformerModule(str(tiny_bert_dir), num_classes=2, lr_scheduler_interval="step")
    data = TextDataModule(str(tiny_bert_dir), train=str(save_csv(tmp_path / "a.csv", make_reviews(8))))
    with pytest.raises(MisconfigurationException, match=r"lr_scheduler_interval='step' has no effect.*none is given"):
        Trainer(max_steps=1, logger=False, enable_checkpointing=False).fit(module, data)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pooling": "max"}, r"pooling is 'max': expected one of 'mean', 'cls', 'last', 'none'"),
        ({"pooling": None}, r"pooling is None"),
        ({"num_outputs": 0}, r"num_outputs is 0: expected at least 1"),
        ({"num_outputs": "2"}, r"num_outputs is '2'"),
        ({"hidden_size": -1}, r"hidden_size is -1"),
        ({"dropout": 1.5}, r"dropout is 1\.5"),
        ({"encoder": "bert"}, r"encoder is 'bert': expected a torch\.nn\.Module"),
        ({"task": "classification"}, r"task is 'classification': expected a Task"),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value),
)
def test_wrong_arguments_of_the_pooled_model(settings: dict[str, Any], message: str, tiny_bert_dir: Path) -> None:
    right = {"encoder": AutoModel.from_pretrained(tiny_bert_dir), "task": get_task("classification"), "num_outputs": 2}
    with pytest.raises(MisconfigurationException, match="|".join([message, *(f"{name}=" for name in settings)])):
        PooledModel(**{**right, **settings})
