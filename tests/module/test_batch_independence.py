"""The logits of a text do not depend on the texts that share its batch, for the families that classify texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from lightning.pytorch import Trainer
from reviews import save_csv
from tiny_models import FAMILIES, VOCABULARY, make_tokenizer
from torch import Tensor

from lightning_freeze.data import TextDataModule
from lightning_freeze.module import TransformerModule

# The ids of a model's special tokens, and those of its tokenizer ([PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3, [MASK] 4).
IDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "the same": ({"pad_token_id": 0, "eos_token_id": 3}, {}),
    "no padding token": ({"pad_token_id": None, "eos_token_id": 3}, {}),
    "several end tokens": ({"pad_token_id": None, "eos_token_id": [4, 3]}, {"pad_token": None}),
    "another padding token": ({"pad_token_id": 4, "eos_token_id": 3}, {}),
    "padding below the vocabulary": ({"pad_token_id": -1, "eos_token_id": 3}, {}),
    "padding beyond the vocabulary": ({"pad_token_id": len(VOCABULARY), "eos_token_id": 3}, {}),
}
TEXTS = ("good", "the film is bad and the plot is very poor", "a great film", "not the film")


def folder_of(path: Path, family: str, ids: dict[str, Any], tokens: dict[str, Any]) -> Path:
    """Save a tiny model of a family, whose config has these special tokens, with its tokenizer."""
    torch.manual_seed(0)
    sizes = {key: value for key, value in FAMILIES[family].items() if key != "pad_token_id"}
    config = getattr(transformers, f"{family}Config")(**sizes, pad_token_id=0, bos_token_id=2, eos_token_id=3)
    model = getattr(transformers, f"{family}ForSequenceClassification")(config)
    for parameter in model.parameters():
        parameter.data.normal_(0.0, 0.3)  # the usual spread of 0.02 would hide a difference
    model.save_pretrained(path)
    stored = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**stored, **ids}))
    tokenizer = make_tokenizer()
    for name, value in tokens.items():
        setattr(tokenizer, name, value)
    tokenizer.save_pretrained(path)
    return path


def worst_difference(module: TransformerModule, data: TextDataModule) -> float:
    """Return the largest difference between the logits of a text alone and in its batch."""
    module.eval()
    worst = 0.0
    for batch in data.train_dataloader():
        inputs = {key: value for key, value in batch.items() if key not in ("labels", "index")}
        assert len(set(inputs["attention_mask"].sum(1).tolist())) > 1
        with torch.no_grad():
            together = module(**inputs)
            for i, row in enumerate(inputs["attention_mask"].bool()):
                alone: Tensor = module(**{key: value[i : i + 1, row] for key, value in inputs.items()})
                worst = max(worst, float((alone[0] - together[i]).abs().max()))
    return worst


def data_of(folder: Path, tokenizer: Any, **settings: Any) -> TextDataModule:
    rows = [{"text": text, "label": i % 2} for i, text in enumerate(TEXTS)]
    path = save_csv(folder / "rows.csv", rows)
    data = TextDataModule(tokenizer, train=str(path), batch_size=4, seed=0, **settings)
    data.setup("fit")
    return data


CLASSIFIERS: tuple[str, ...] = (
    *("Bert", "Roberta", "DistilBert", "DebertaV2", "Albert", "Electra", "XLNet", "GPT2", "GPTNeoX"),
    *("OPT", "Bloom", "Llama", "Qwen2", "Mistral", "Gemma", "Phi", "T5", "Bart"),
)
FAST = [(family, "several end tokens") for family in CLASSIFIERS]
FAST += [(family, ids) for family in ("Roberta", "Qwen2") for ids in IDS if ids != "several end tokens"]
SLOW = [(family, ids) for family in CLASSIFIERS for ids in IDS if (family, ids) not in FAST]
SLOW += [(family, "several end tokens") for family in FAMILIES if family not in CLASSIFIERS]


@pytest.mark.fast_cases(13)
@pytest.mark.parametrize(("family", "ids"), [*FAST, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)])
def test_logits_do_not_depend_on_the_batch(family: str, ids: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "model", family, *IDS[ids])
    module = TransformerModule(str(folder), num_classes=2)
    assert worst_difference(module, data_of(tmp_path, str(folder))) < 2e-5


@pytest.mark.parametrize("family", ["Qwen2", "Roberta", "XLNet"])
@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_a_small_head_does_not_see_the_padding(family: str, pooling: Any, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "model", family, *IDS["no padding token"])
    module = TransformerModule(str(folder), num_classes=2, pooling=pooling)
    assert worst_difference(module, data_of(tmp_path, str(folder))) < 2e-5


def test_batches_of_another_tokenizer(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "model", "Llama", {"pad_token_id": 2}, {})
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["[FILL]"])
    tokenizer.add_special_tokens({"pad_token": "[MORE]"})
    data = data_of(tmp_path, tokenizer)
    assert tokenizer.pad_token_id >= len(VOCABULARY)  # the model has no embedding for it
    assert worst_difference(TransformerModule(str(folder), num_classes=2), data) < 2e-5


def test_a_module_takes_the_padding_token_of_the_data(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "model", "GPT2", *IDS["no padding token"])
    model = transformers.GPT2ForSequenceClassification.from_pretrained(folder)
    module = TransformerModule(model, num_classes=2)
    trainer = Trainer(max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.fit(module, data_of(tmp_path, str(folder)))
    assert model.config.pad_token_id == 0
    assert worst_difference(module, data_of(tmp_path, str(folder))) < 2e-5


def test_padding_with_a_real_token_still_trains_its_embedding(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "model", "Llama", *IDS["several end tokens"])
    module = TransformerModule(str(folder), num_classes=2, pooling="mean")
    module(input_ids=torch.tensor([[5, 3]]), attention_mask=torch.ones(1, 2, dtype=torch.long)).sum().backward()
    gradient = module.model.encoder.embed_tokens.weight.grad  # type: ignore[union-attr]
    assert gradient[3].abs().sum() > 0  # type: ignore[index]


def test_a_text_with_an_end_token_inside_is_read_as_plain_text(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "model", "Bart", *IDS["the same"])
    rows = [{"text": text, "label": i % 2} for i, text in enumerate([*TEXTS, "a good [SEP] film"])]
    data = TextDataModule(str(folder), train=str(save_csv(tmp_path / "rows.csv", rows)))
    trainer = Trainer(max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.fit(TransformerModule(str(folder), num_classes=2), data)
    assert all((example["input_ids"] == 3).sum() == 1 for example in data.encoded["train"])


def test_generation_ends_at_the_end_token_of_the_tokenizer(tmp_path: Path, tiny_gpt2_dir: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.eos_token = "[MASK]"
    model = transformers.GPT2LMHeadModel.from_pretrained(tiny_gpt2_dir)
    module = TransformerModule(model, "causal-lm", generate_kwargs={"max_new_tokens": 8})
    path = save_csv(tmp_path / "rows.csv", [{"text": text} for text in TEXTS])
    data = TextDataModule(tokenizer, "causal-lm", predict=str(path), batch_size=4)
    Trainer(logger=False, enable_progress_bar=False).predict(module, data)
    assert model.generation_config.eos_token_id == [3, 4]
    assert model.generation_config.pad_token_id == model.config.pad_token_id == 0
