"""Encoders by path or name, and what is said when they are not there."""

from __future__ import annotations

import json
import socket
import warnings
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from lightning.fabric.utilities.exceptions import MisconfigurationException
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from lightning_freeze.data import TextDataModule
from lightning_freeze.module import TransformerModule
from lightning_freeze.module.pretrained.hub import resolve
from lightning_freeze.module.pretrained.loading import load
from lightning_freeze.module.pretrained.structure import load_structure
from lightning_freeze.module.tasks import get_task


def test_a_model_is_ready_to_train_and_says_nothing(tiny_bert_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = load(str(tiny_bert_dir), get_task("classification"), True, num_labels=3).model
    assert model.training and model.classifier.out_features == 3  # type: ignore[union-attr]
    assert capfd.readouterr() == ("", "")


def test_weights_are_loaded_only_if_pretrained(tiny_bert_dir: Path) -> None:
    stored = AutoModel.from_pretrained(tiny_bert_dir).embeddings.word_embeddings.weight
    loaded = load(str(tiny_bert_dir), get_task("classification"), True, num_labels=2).model
    fresh = load(str(tiny_bert_dir), get_task("classification"), False, num_labels=2).model
    assert torch.equal(loaded.bert.embeddings.word_embeddings.weight, stored)  # type: ignore[union-attr, arg-type]
    assert not torch.equal(fresh.bert.embeddings.word_embeddings.weight, stored)  # type: ignore[union-attr, arg-type]
    assert fresh.training and fresh.classifier.out_features == 2  # type: ignore[union-attr]


def test_a_bare_encoder_has_no_unused_pooler(tiny_bert_dir: Path) -> None:
    model = load(str(tiny_bert_dir), None, True).model
    output = model(input_ids=torch.ones(2, 3, dtype=torch.long))
    output.last_hidden_state.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_missing_encoder_weights_are_a_warning(tmp_path: Path, tiny_bert_dir: Path) -> None:
    for file in tiny_bert_dir.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    kept = {key: value for key, value in weights.items() if "layer.2." not in key}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.warns(UserWarning, match=r"16 tensors of the encoder are not in the weights.*layer\.2\."):
        load(str(tmp_path), get_task("classification"), True, num_labels=2)


def test_no_head_for_the_task(tiny_vit_dir: Path) -> None:
    with pytest.raises(MisconfigurationException, match=r"no head for the task 'causal-lm'.*pooling='mean'"):
        load(str(tiny_vit_dir), get_task("causal-lm"), True)


def test_missing_folder_names_the_nearest(tiny_bert_dir: Path) -> None:
    with pytest.raises(MisconfigurationException, match=r"tiny-brt' does not exist\. Did you mean 'tiny-bert'"):
        resolve(str(tiny_bert_dir.with_name("tiny-brt")))
    with pytest.raises(MisconfigurationException, match=r"'\./nowhere/x' does not exist\. Its parent folder"):
        resolve("./nowhere/x")


def test_folder_without_config_and_file_for_a_folder(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match=r"has no config\.json"):
        resolve(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(MisconfigurationException, match=r"is a file: expected the folder"):
        resolve(str(tmp_path / "model.safetensors"))


def test_damaged_weights(tmp_path: Path, tiny_bert_dir: Path) -> None:
    (tmp_path / "config.json").write_text((tiny_bert_dir / "config.json").read_text())
    with pytest.raises(MisconfigurationException, match=r"could not be loaded"):
        load(str(tmp_path), get_task("classification"), True)
    (tmp_path / "model.safetensors").write_bytes(b"garbage")
    with pytest.raises(MisconfigurationException, match=r"could not be loaded"):
        load(str(tmp_path), get_task("classification"), True)


def test_offline_says_so_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(MisconfigurationException, match=r"'some/model'.*switched off \(HF_HUB_OFFLINE\).*`hf download"):
        resolve("some/model")


def test_no_connection_says_so_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object) -> None:
        raise OSError

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    monkeypatch.setattr("lightning_freeze.module.pretrained.hub.getproxies", dict)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    with pytest.raises(MisconfigurationException, match=r"there is no network connection.*hf download some/model"):
        resolve("some/model")


def test_online_names_are_left_to_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    monkeypatch.setattr("lightning_freeze.module.pretrained.hub.getproxies", dict)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: [])
    assert resolve("some/model") == ("some/model", {})


def test_a_cached_model_is_used_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(
        "lightning_freeze.module.pretrained.hub.try_to_load_from_cache", lambda *_: "/cache/config.json"
    )
    assert resolve("some/model") == ("some/model", {"local_files_only": True})


def test_a_stored_head_for_other_classes_is_initialised_again(tmp_path: Path, tiny_bert_dir: Path) -> None:
    stored = load(str(tiny_bert_dir), get_task("classification"), True, num_labels=2).model
    stored.save_pretrained(tmp_path)  # type: ignore[operator]
    model = load(str(tmp_path), get_task("classification"), True, num_labels=5).model
    assert model.classifier.out_features == 5  # type: ignore[union-attr]
    with pytest.raises(MisconfigurationException, match=r"have another shape, for example 'bert\."):
        load(str(tmp_path), get_task("classification"), True, num_labels=5, hidden_size=32)


@pytest.fixture
def with_code(tmp_path: Path, tiny_bert_dir: Path) -> Path:
    """A folder whose model and tokenizer ask for code of their own, which writes a file when it is run."""
    for file in tiny_bert_dir.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    for key in ("AutoConfig", "AutoModel", "AutoModelForSequenceClassification"):
        config.setdefault("auto_map", {})[key] = "own.Own"
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "own"}))
    tokenizer = json.loads((tmp_path / "tokenizer_config.json").read_text())
    tokenizer |= {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": [None, "own.OwnTokenizer"]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (tmp_path / "own.py").write_text(
        f"open({str(tmp_path / 'was_run')!r}, 'w').close()\nraise RuntimeError('was run')\n"
    )
    return tmp_path


def test_code_that_comes_with_a_model_is_not_run(with_code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(*_: object) -> str:
        raise AssertionError("somebody was asked")

    monkeypatch.setattr("builtins.input", ask)
    message = r"comes with code of its own.*model_kwargs=\{'trust_remote_code': True\}"
    with pytest.raises(MisconfigurationException, match=message):
        TransformerModule(str(with_code), num_classes=2)
    with pytest.raises(MisconfigurationException, match=message):
        TransformerModule(str(with_code), num_classes=2, pooling="mean")
    with pytest.raises(MisconfigurationException, match=r"cannot be read.*custom code"):
        load_structure(with_code)
    data = TextDataModule(str(with_code), predict="rows.csv")
    with pytest.raises(MisconfigurationException, match=r"could not be loaded.*custom code"):
        _ = data.tokenizer
    assert not (with_code / "was_run").exists()


def test_code_is_run_on_request(with_code: Path) -> None:
    with pytest.raises(MisconfigurationException, match="was run"):
        TransformerModule(str(with_code), num_classes=2, model_kwargs={"trust_remote_code": True})
    assert (with_code / "was_run").exists()


def test_an_architecture_that_is_no_model(tmp_path: Path, tiny_bert_dir: Path) -> None:
    config = json.loads((tiny_bert_dir / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["pipeline", "AutoTokenizer"]}))
    assert type(load_structure(tmp_path)).__name__ == "BertModel"


def test_an_unknown_argument_names_the_nearest(tiny_bert_dir: Path) -> None:
    with pytest.raises(MisconfigurationException, match=r"'hiden_size' is neither .*Did you mean 'hidden_size'"):
        load(str(tiny_bert_dir), None, True, hiden_size=3)
