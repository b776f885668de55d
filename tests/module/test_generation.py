"""Responses of a causal language model, compared with the expected ones in a test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lm_tokenizers import byte_level, metaspace
from transformers import GPT2Config, GPT2LMHeadModel

from lightning_freeze import TextDataModule, TransformerModule
from lightning_freeze.module.generation import ResponseOverlap, parts_with_room, split_prompts
from lightning_freeze.module.pretrained.special_tokens import end_of_turn

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}


def test_prompts_are_cut_off_before_the_last_response_and_padded_on_the_left() -> None:
    ids = torch.tensor([[5, 6, 7, 8, 0, 0], [1, 2, 3, 4, 5, 6]])
    labels = torch.tensor([[-100, 6, 7, 8, -100, -100], [-100, 2, -100, -100, 5, 6]])
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
    prompts = split_prompts({"input_ids": ids, "attention_mask": mask}, labels)
    assert prompts is not None
    assert prompts.inputs["input_ids"].tolist() == [[0, 0, 0, 5], [1, 2, 3, 4]]
    assert prompts.inputs["attention_mask"].tolist() == [[0, 0, 0, 1], [1, 1, 1, 1]]
    assert [response.tolist() for response in prompts.responses] == [[6, 7, 8], [5, 6]]


def test_whole_texts_have_no_prompt() -> None:
    ids = torch.tensor([[0, 5, 6], [7, 8, 9]])
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    assert split_prompts({"input_ids": ids, "attention_mask": mask}, ids.masked_fill(mask == 0, -100)) is None


def test_exact_match_and_f1_of_words() -> None:
    overlap = ResponseOverlap()
    overlap.update(["The sea!", "I live in a house"], ["sea", "I live by the sea"])
    overlap.update(["no"], ["yes"])
    # Articles do not count: "I live in house" and "I live by sea" share 2 of 4 words each.
    assert {name: float(value) for name, value in overlap.compute().items()} == {
        "exact_match": pytest.approx(1 / 3),
        "token_f1": pytest.approx((1 + 0.5 + 0) / 3),
    }


@pytest.fixture
def dialogues(tmp_path: Path) -> Path:
    path = tmp_path / "dialogues.jsonl"
    rows = [
        {"prompt": "Where do you live?", "response": " By the sea."},
        {"prompt": "What?", "response": " My name is Pip."},
    ]
    path.write_text("\n".join(map(json.dumps, rows * 4)))
    return path


def fit_and_test(module: TransformerModule, path: Path) -> dict[str, float]:
    data = TextDataModule(byte_level(), "causal-lm", train=str(path), test=str(path), batch_size=3)
    trainer = Trainer(max_epochs=30, **QUIET)
    trainer.fit(module, data)
    return dict(trainer.test(module, data, verbose=False)[0])


def model() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=400, n_embd=32, n_layer=2, n_head=2, n_positions=64, eos_token_id=2, pad_token_id=0)
    config.embd_pdrop = config.resid_pdrop = config.attn_pdrop = 0.0
    return GPT2LMHeadModel(config)


@pytest.mark.slow
def test_a_test_logs_exact_match_and_f1_beside_the_perplexity(dialogues: Path) -> None:
    module = TransformerModule(
        model(), task="causal-lm", optimizer=lambda params: torch.optim.AdamW(params, lr=1e-2), warmup_ratio=0.0
    )
    scores = fit_and_test(module, dialogues)
    assert scores["test_perplexity"] < 1.1
    assert scores["test_exact_match"] == scores["test_token_f1"] == 1.0, "the model has learned them by heart"
    for weight in module.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    data = TextDataModule(byte_level(), "causal-lm", test=str(dialogues))
    worse = Trainer(**QUIET).test(module, data, verbose=False)[0]
    assert worse["test_exact_match"] < 1.0 and worse["test_token_f1"] < 1.0


def test_a_prediction_is_the_response_alone_where_the_data_has_prompts(dialogues: Path) -> None:
    module = TransformerModule(model(), task="causal-lm", generate_kwargs={"max_new_tokens": 8})
    for weight in module.parameters():
        torch.nn.init.normal_(weight, std=0.5)

    def predicted(**columns: str) -> list[str]:
        data = TextDataModule(byte_level(), "causal-lm", predict=str(dialogues), batch_size=8, **columns)
        batches = Trainer(**QUIET).predict(module, data)
        assert batches is not None
        return [text for batch in batches for text in batch["text"]]

    prompts = [json.loads(line)["prompt"] for line in dialogues.read_text().splitlines()]
    responses = predicted()
    assert any(responses)
    assert predicted(text="prompt") == [prompt + text for prompt, text in zip(prompts, responses, strict=True)]


def test_a_long_prompt_does_not_shorten_the_responses_to_short_ones(tmp_path: Path) -> None:
    path = tmp_path / "dialogues.jsonl"
    rows = [
        {"prompt": "Where do you live? " * 11, "response": " Here."},
        {"prompt": "What is your name?", "response": " My name is Pip. I live in a house by the sea."},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    torch.manual_seed(0)
    network = model()
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    network.config.eos_token_id = network.generation_config.eos_token_id = None
    written: list[int] = []
    generate = network.generate

    def counted(**inputs: Any) -> torch.Tensor:
        tokens = generate(**inputs)
        written.extend([tokens.shape[1] - inputs["input_ids"].shape[1]] * len(tokens))
        return tokens

    network.generate = counted
    data = TextDataModule(byte_level(), "causal-lm", test=str(path), batch_size=2, max_length=64)
    data.setup("test")
    room = [64 - int((example["labels"] == -100).sum()) for example in data.encoded["test"]]
    module = TransformerModule(network, task="causal-lm", generate_kwargs={"max_new_tokens": 30, "eos_token_id": None})
    Trainer(**QUIET).test(module, data, verbose=False)
    assert room[0] < 30 < room[1]
    assert sorted(written) == [room[0], 30]


def test_prompts_that_fit_stay_in_one_batch() -> None:
    ids = torch.tensor([[1, 2, 3, 4, 5], [1, 2, 3, 4, 5]])
    prompts = split_prompts(
        {"input_ids": ids}, ids.masked_fill(torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]]) > 0, -100)
    )
    assert prompts is not None
    assert [len(part.responses) for part in parts_with_room(prompts, 8, 5)] == [2]
    assert [len(part.responses) for part in parts_with_room(prompts, 8, 6)] == [1, 1]
    assert [part.inputs["input_ids"].shape[1] for part in parts_with_room(prompts, 8, 6)] == [3, 1]
    assert parts_with_room(None, 8, 6) == []


def test_whole_texts_are_not_generated(tmp_path: Path) -> None:
    path = tmp_path / "texts.csv"
    path.write_text("text\nI live by the sea.\nMy name is Pip.\n")
    data = TextDataModule(byte_level(), "causal-lm", test=str(path))
    module = TransformerModule(model(), task="causal-lm")
    scores = Trainer(**QUIET).test(module, data, verbose=False)[0]
    assert set(scores) == {"test_loss", "test_perplexity"}


def test_only_models_that_write_on_measure_responses(tiny_bert_dir: Path, tiny_gpt2_dir: Path) -> None:
    assert "response_overlap" not in dict(TransformerModule(str(tiny_bert_dir), num_classes=2).named_children())
    assert "response_overlap" in dict(TransformerModule(str(tiny_gpt2_dir), task="causal-lm").named_children())


def chat_tokenizer_of_a_base_model() -> Any:
    """Its end token is that of documents; a turn ends with another one."""
    tokenizer = byte_level()
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return tokenizer


def test_a_response_ends_with_its_turn_where_that_is_not_the_end_token(tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    question, answer = {"role": "user", "content": "Where?"}, {"role": "assistant", "content": "By the sea."}
    path.write_text("\n".join([json.dumps({"messages": [question, answer]})] * 4))
    files = {"train": str(path), "test": str(path), "predict": str(path)}
    data = TextDataModule(chat_tokenizer_of_a_base_model(), "causal-lm", **files)
    module = TransformerModule(
        model(), task="causal-lm", optimizer=lambda params: torch.optim.AdamW(params, lr=1e-2), warmup_ratio=0.0
    )
    trainer = Trainer(max_epochs=30, **QUIET)
    trainer.fit(module, data)
    assert trainer.test(module, data, verbose=False)[0]["test_exact_match"] == 1.0
    # In another process, where nothing is known but the weights.
    again = TransformerModule(model(), task="causal-lm", generate_kwargs={"max_new_tokens": 20})
    again.load_state_dict(module.state_dict())
    (batch,) = Trainer(**QUIET).predict(again, TextDataModule(chat_tokenizer_of_a_base_model(), "causal-lm", **files))
    assert batch["text"] == ["By the sea."] * 4


def test_the_token_that_ends_a_turn() -> None:
    tokenizer = chat_tokenizer_of_a_base_model()
    assert end_of_turn(tokenizer) == tokenizer.convert_tokens_to_ids("<|im_end|>") != tokenizer.eos_token_id
    assert end_of_turn(metaspace()) == metaspace().eos_token_id
    assert end_of_turn(byte_level(None)) is None
    assert end_of_turn(byte_level("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}")) is None
    assert end_of_turn(byte_level("{{ raise_exception('A conversation needs a system message.') }}")) is None
