"""A stored head keeps the meaning of its outputs, or the run reports how it was changed."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from reviews import save_csv
from tiny_models import VOCABULARY, make_tokenizer
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)

from lightning_freeze.data import TextDataModule
from lightning_freeze.module import TransformerModule
from lightning_freeze.module.pretrained.heads import match_labels

NLI = ["contradiction", "neutral", "entailment"]
SIZES = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 66,
}
IDS = torch.tensor([[2, 7, 9, 3], [2, 12, 8, 3]])


@pytest.mark.parametrize(
    ("names", "labels", "rows"),
    [
        (NLI, sorted(NLI), [0, 2, 1]),
        (["NEGATIVE", "POSITIVE"], ["positive", "negative"], [1, 0]),
        (["not_entailment", "entailment"], ["entailment", "Not entailment"], [1, 0]),
        (["B-PER", "O"], ["O", "b_per"], [1, 0]),
        (["LABEL_0", "LABEL_1", "LABEL_2"], ["0", "2"], [0, 2]),
        (["a", "b"], ["0", "1"], [0, 1]),
        (["a", "b"], ["1", "2"], None),
        (["LABEL_0", "LABEL_1"], ["neg", "pos"], None),
        (["a", "b", "c"], ["c", "a"], [2, 0]),
        (["a", "b"], ["a", "b", "c"], [0, 1, None]),
        (["a", "b"], ["x", "y"], None),
        (["A", "a"], ["a", "A"], [1, 0]),
        (["+", "-"], ["-", "+"], [1, 0]),
    ],
)
def test_labels_are_matched_by_name(names: list[str], labels: list[str], rows: Any) -> None:
    assert match_labels(names, labels) == rows


def save(folder: Path, names: list[str] | None, model_class: Any = BertForSequenceClassification, **sizes: Any) -> Any:
    """Save a model whose head has these classes; None leaves them the names that transformers gives."""
    torch.manual_seed(0)
    named = {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}} if names else {}
    config_class = RobertaConfig if model_class is RobertaForSequenceClassification else BertConfig
    config = config_class(**{**SIZES, "num_labels": 3, **named, **sizes})
    model = model_class(config).eval()
    torch.nn.init.normal_(output_layer(model).bias)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return model


def output_layer(model: Any) -> Any:
    return getattr(model.classifier, "out_proj", model.classifier)


@pytest.mark.parametrize("model_class", [BertForSequenceClassification, RobertaForSequenceClassification])
@pytest.mark.parametrize("labels", [sorted(NLI), ["Entailment", "NEUTRAL", "contradiction"], ["neutral", "entailment"]])
def test_outputs_keep_their_meaning(model_class: Any, labels: list[str], tmp_path: Path) -> None:
    stored = save(tmp_path, NLI, model_class)
    module = TransformerModule(str(tmp_path), num_classes=len(labels), labels=labels).eval()
    columns = [NLI.index(label.lower()) for label in labels]
    assert torch.equal(module(input_ids=IDS), stored(IDS).logits[:, columns])
    assert module.head_is_trained
    model: Any = module.model
    assert model.config.id2label == dict(enumerate(labels)) and model.num_labels == len(labels)
    assert output_layer(model).out_features == len(labels)
    assert model(input_ids=IDS, labels=torch.tensor([0, 1])).loss.isfinite()


def test_token_and_image_heads(tmp_path: Path) -> None:
    tags = ["O", "B-PER", "I-PER"]
    stored = save(tmp_path / "tokens", tags, BertForTokenClassification)
    module = TransformerModule(str(tmp_path / "tokens"), "token-classification", labels=sorted(tags)).eval()
    assert torch.equal(module(input_ids=IDS), stored(IDS).logits[..., [1, 2, 0]])
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=8,
        patch_size=4,
        id2label={0: "dog", 1: "cat"},
        label2id={"dog": 0, "cat": 1},
    )
    vit = ViTForImageClassification(config).eval()
    vit.save_pretrained(tmp_path / "images")
    module = TransformerModule(str(tmp_path / "images"), "image-classification", labels=["cat", "dog"]).eval()
    pixels = torch.randn(2, 3, 8, 8)
    assert torch.equal(module(pixel_values=pixels), vit(pixels).logits[:, [1, 0]])


def test_a_new_class_beside_known_ones(tmp_path: Path) -> None:
    stored = save(tmp_path, NLI)
    labels = ["other", "entailment", "neutral", "contradiction"]
    module = TransformerModule(str(tmp_path), labels=labels).eval()
    torch.testing.assert_close(module(input_ids=IDS)[:, 1:], stored(IDS).logits[:, [2, 1, 0]])
    assert not module.head_is_trained


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize(
    ("names", "labels", "trained", "note"),
    [
        (NLI, NLI, True, None),
        (NLI, sorted(NLI), True, "its outputs are put in the order of the data, 'contradiction', 'entailment'"),
        (NLI, ["neutral", "entailment"], True, "its outputs for 'neutral', 'entailment' are used"),
        (NLI, ["0", "1", "2"], True, None),
        (NLI, ["a", "b", "c"], True, "taken in their order: 'contradiction' as 'a', 'neutral' as 'b'"),
        (NLI, ["a", "b"], False, "was trained for the classes 'contradiction'.*a new head is trained"),
        (None, ["a", "b", "c"], True, "'LABEL_0' as 'a'"),
        (None, ["0", "1", "2"], True, None),
        (None, ["a", "b"], False, "has 3 outputs, and the data has the 2 classes"),
        (NLI, [*NLI, "other"], False, "the outputs for 'other' are new"),
    ],
)
def test_the_run_says_what_becomes_of_the_head(
    names: list[str] | None,
    labels: list[str],
    trained: bool,
    note: str | None,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    save(tmp_path, names)
    module = TransformerModule(str(tmp_path), labels=labels)
    assert module.head_is_trained is trained
    said = run(module, tmp_path, caplog)
    assert len(said) == (note is not None)
    if note is not None:
        assert re.search(note, said[0])
    assert not run(module, tmp_path, caplog)


def run(module: TransformerModule, folder: Path, caplog: pytest.LogCaptureFixture) -> list[str]:
    """Test the module on data of its labels; return what was said of the head."""
    rows = [{"text": "the film", "label": label} for label in module.labels or []]
    path = str(save_csv(folder / "rows.csv", rows))
    data = TextDataModule(str(folder), test=path, labels=module.labels)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        Trainer(logger=False, enable_progress_bar=False, enable_model_summary=False).test(module, data, verbose=False)
    return [record.getMessage() for record in caplog.records if " head of " in record.getMessage()]


def test_a_base_model_gets_a_new_head_and_nothing_is_said(
    tmp_path: Path, tiny_bert_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = TransformerModule(str(tiny_bert_dir), labels=["0", "1", "2"])
    assert not module.head_is_trained and module.model.config.num_labels == 3  # type: ignore[union-attr]
    make_tokenizer().save_pretrained(tmp_path)
    assert not run(module, tmp_path, caplog)


def test_a_checkpoint_says_nothing_of_the_stored_head(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path, NLI)
    trainer = Trainer(logger=False, enable_checkpointing=False)
    trainer.strategy.connect(TransformerModule(str(tmp_path), labels=["x", "y"]))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    module = TransformerModule.load_from_checkpoint(tmp_path / "a.ckpt")
    assert module.head_is_trained
    assert not run(module, tmp_path, caplog)


def test_a_model_that_the_user_has_built(tmp_path: Path) -> None:
    stored = save(tmp_path, NLI)
    model = BertForSequenceClassification.from_pretrained(tmp_path)
    module = TransformerModule(model, labels=sorted(NLI)).eval()
    assert torch.equal(module(input_ids=IDS), stored(IDS).logits[:, [0, 2, 1]])
    with pytest.raises(MisconfigurationException, match=r"has 3 outputs, but 2 are needed: expected .*num_labels=2"):
        TransformerModule(BertForSequenceClassification.from_pretrained(tmp_path), num_classes=2)
    with pytest.raises(MisconfigurationException, match=r"has the classes 'contra.*the data has 'a', 'neutral'"):
        TransformerModule(
            BertForSequenceClassification.from_pretrained(tmp_path), labels=["a", "neutral", "entailment"]
        )
