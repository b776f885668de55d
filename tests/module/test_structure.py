"""From a name or a path to a model's structure."""

from __future__ import annotations

from pathlib import Path

import pytest
from layer_models import COMMON
from lightning.fabric.utilities.exceptions import MisconfigurationException
from transformers import BertConfig, BertForSequenceClassification

from lightning_freeze.layers import LayerStack
from lightning_freeze.module.pretrained.structure import load_structure


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = tmp_path / "reviews"
    BertForSequenceClassification(BertConfig(**COMMON)).save_pretrained(folder)
    return folder


def test_structure_of_a_saved_model(saved: Path) -> None:
    module = load_structure(saved)
    assert isinstance(module, BertForSequenceClassification)
    assert all(parameter.is_meta for parameter in module.parameters())
    assert LayerStack(module).names == ["embeddings", "0", "1", "2", "3", "head"]


def test_weights_are_not_needed(saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    assert len(LayerStack(load_structure(str(saved))).blocks) == 4


def test_plain_model_where_no_class_is_named(tmp_path: Path) -> None:
    BertConfig(**COMMON).save_pretrained(tmp_path)
    assert type(load_structure(tmp_path)).__name__ == "BertModel"


def test_missing_folder_names_the_nearest(saved: Path) -> None:
    with pytest.raises(MisconfigurationException, match=r"does not exist.*Did you mean 'reviews'"):
        load_structure(saved.parent / "revews")


def test_folder_without_config_names_the_one_below(saved: Path) -> None:
    with pytest.raises(MisconfigurationException, match=r"no config\.json.*Did you mean '.*/reviews'"):
        load_structure(saved.parent)


def test_file_instead_of_folder(saved: Path) -> None:
    with pytest.raises(MisconfigurationException, match="is a file: expected the folder"):
        load_structure(saved / "config.json")


@pytest.mark.parametrize("source", ["", "  "])
def test_empty_name(source: str) -> None:
    with pytest.raises(MisconfigurationException, match="has no name"):
        load_structure(source)


def test_unreachable_name_says_what_to_do() -> None:
    with pytest.raises(
        MisconfigurationException,
        match=r"'no-such-model-here' is neither .*switched off.*hf download no-such-model-here",
    ):
        load_structure("no-such-model-here")


def test_unreadable_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(MisconfigurationException, match="cannot be read"):
        load_structure(tmp_path)


def test_unknown_model_type(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nonsense"}')
    with pytest.raises(MisconfigurationException, match="cannot be read"):
        load_structure(tmp_path)
