"""Token ids and labels of each kind of task."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lm_tokenizers import metaspace
from tokenizers import processors
from transformers import AutoTokenizer

from lightning_freeze.data import TextDataModule
from lightning_freeze.data.encoding import Columns, encode, load_tokenizer
from lightning_freeze.data.reading.readers import Table
from lightning_freeze.module.tasks import get_task

Write = Callable[[str, str], Path]


def table(*rows: dict[str, Any]) -> Table:
    return Table("a.jsonl", tuple(rows[0]), rows, range(1, len(rows) + 1))


def test_texts_and_pairs(tiny_bert_dir: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert_dir)
    rows = table({"a": "good film", "b": "bad"})
    single = encode(rows, tokenizer, get_task("classification"), Columns("a", None, ("y",)), None, [1])[0]
    assert tokenizer.convert_ids_to_tokens(single["input_ids"]) == ["[CLS]", "good", "film", "[SEP]"]
    assert single["labels"].item() == 1 and single["index"] == 0
    pair = encode(rows, tokenizer, get_task("pair-classification"), Columns("a", "b", ("y",)), None, [1])[0]
    assert tokenizer.convert_ids_to_tokens(pair["input_ids"])[-2:] == ["bad", "[SEP]"]


def test_long_texts_are_cut(tiny_bert_dir: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert_dir)
    rows, columns = table({"a": "good " * 500}), Columns("a", None, ("y",))
    assert len(encode(rows, tokenizer, get_task("classification"), columns, 5, [1])[0]["input_ids"]) == 5
    assert len(encode(rows, tokenizer, get_task("classification"), columns, None, [1])[0]["input_ids"]) == 64


def test_the_first_piece_of_a_word_carries_its_tag(tiny_bert_dir: Path) -> None:
    task = get_task("token-classification")
    tokenizer = load_tokenizer(str(tiny_bert_dir), task)
    rows = table({"tokens": ["films", "good"], "tags": []})
    example = encode(rows, tokenizer, task, Columns("tokens", None, ("tags",)), None, [[3, 4]])[0]
    assert tokenizer.convert_ids_to_tokens(example["input_ids"]) == ["[CLS]", "film", "##s", "good", "[SEP]"]
    assert example["labels"].tolist() == [-100, 3, -100, 4, -100]


def test_causal_texts_end_and_are_their_own_labels(tiny_gpt2_dir: Path) -> None:
    task = get_task("causal-lm")
    tokenizer = load_tokenizer(str(tiny_gpt2_dir), task)
    rows, columns = table({"text": "good film"}), Columns("text", None, ("label",))
    example = encode(rows, tokenizer, task, columns, None, None)[0]
    assert int(example["input_ids"][-1]) == tokenizer.eos_token_id
    assert example["labels"].tolist() == example["input_ids"].tolist()
    assert "labels" not in encode(rows, tokenizer, task, columns, None, None, for_prediction=True)[0]


@pytest.mark.parametrize("adds_end", [False, True])
def test_a_causal_text_that_is_cut_has_no_end(adds_end: bool) -> None:
    tokenizer = metaspace(None)
    if adds_end:
        tokens = [("<s>", tokenizer.bos_token_id), ("</s>", tokenizer.eos_token_id)]
        adding = processors.TemplateProcessing(single="<s> $A </s>", pair="<s> $A $B </s>", special_tokens=tokens)
        tokenizer.backend_tokenizer.post_processor = adding
    rows, columns = table({"text": "I live in a house by the sea. " * 3}), Columns("text", None, ("label",))

    def ids(limit: int) -> list[int]:
        (example,) = encode(rows, tokenizer, get_task("causal-lm"), columns, limit, None)
        assert example["labels"].tolist() == example["input_ids"].tolist()
        return list(example["input_ids"].tolist())

    whole = ids(64)
    assert whole[-1] == tokenizer.eos_token_id and whole.count(tokenizer.eos_token_id) == 1
    assert ids(len(whole)) == whole
    for limit in (len(whole) - 1, len(whole) - 3):
        cut = ids(limit)
        assert cut == whole[: len(cut)] and limit - 1 <= len(cut) <= limit
        assert tokenizer.eos_token_id not in cut, "the model must not learn to end there"
    tokenizer.truncation_side = "left"
    cut = ids(len(whole) - 3)
    assert cut == [whole[0], *whole[4:]], "the beginning was cut, and the text ends there"


def test_targets_of_sequence_to_sequence_models(tiny_t5_dir: Path) -> None:
    task = get_task("seq2seq-lm")
    tokenizer = load_tokenizer(str(tiny_t5_dir), task)
    rows = table({"source": "good film", "target": "bad"})
    example = encode(rows, tokenizer, task, Columns("source", None, ("target",)), None, None)[0]
    assert tokenizer.decode(example["labels"], skip_special_tokens=True) == "bad"


def test_a_tag_for_each_token(write: Write, tiny_bert_dir: Path) -> None:
    rows = [{"tokens": ["a", "b"], "tags": ["X", "Y"]}, {"tokens": ["a"], "tags": ["X", "Y"]}]
    path = write("ner.jsonl", "\n".join(map(json.dumps, rows)))
    data = TextDataModule(str(tiny_bert_dir), "token-classification", train=str(path))
    with pytest.raises(MisconfigurationException, match=r"line 2: 1 tokens in 'tokens', but 2 tags in 'tags'"):
        data.setup("fit")


def test_tokens_must_be_lists(write: Write, tiny_bert_dir: Path) -> None:
    path = write("ner.jsonl", json.dumps({"tokens": "a b", "tags": ["X", "Y"]}))
    data = TextDataModule(str(tiny_bert_dir), "token-classification", train=str(path))
    with pytest.raises(MisconfigurationException, match=r"line 1: 'tokens' is 'a b', expected a list"):
        data.setup("fit")


def test_folder_without_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match=r"holds no tokenizer"):
        load_tokenizer(str(tmp_path), get_task("classification"))
    with pytest.raises(MisconfigurationException, match=r"tokenizer folder './nope' does not exist"):
        load_tokenizer("./nope", get_task("classification"))


def test_a_decoder_without_padding_token_pads_with_its_end(tmp_path: Path, tiny_gpt2_dir: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_gpt2_dir)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path), get_task("causal-lm")).pad_token_id == tokenizer.eos_token_id
