"""Prompts with responses, and chat messages: which tokens are learned, and what happens to rows that are too long."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lm_tokenizers import BRACKETS, byte_level, metaspace
from tiny_models import make_tokenizer
from tokenizers import processors
from transformers import PreTrainedTokenizerBase

from lightning_freeze.data import TextDataModule
from lightning_freeze.data.predictions import prediction_rows
from lightning_freeze.module.tasks import get_task

QUESTION = {"role": "user", "content": "Where do you live?"}
ANSWER = {"role": "assistant", "content": "I live by the sea."}
NEXT = {"role": "user", "content": "What is your name?"}
NAME = {"role": "assistant", "content": "My name is Pip."}
Write = Callable[[str, str], Path]


def data_of(tokenizer: PreTrainedTokenizerBase, path: Path, **settings: Any) -> TextDataModule:
    return TextDataModule(tokenizer, "causal-lm", train=str(path), **settings)


@pytest.fixture
def rows(write: Write) -> Callable[..., Path]:
    def save(*rows: dict[str, Any], name: str = "rows.jsonl") -> Path:
        return write(name, "\n".join(map(json.dumps, rows)))

    return save


def first(tokenizer: PreTrainedTokenizerBase, path: Path, **settings: Any) -> dict[str, Any]:
    data = data_of(tokenizer, path, **settings)
    data.setup("fit")
    return data.encoded["train"][0]


def learned(example: dict[str, Any]) -> list[int]:
    counts = example["labels"] != -100
    assert example["labels"][counts].tolist() == example["input_ids"][counts].tolist()
    return example["labels"][counts].tolist()


@pytest.mark.parametrize("make", [byte_level, metaspace, make_tokenizer])
def test_the_response_and_its_end_token_are_learned_and_nothing_else(make: Any, rows: Callable[..., Path]) -> None:
    tokenizer = make()
    example = first(tokenizer, rows({"prompt": "Where do you live?", "response": " I live by the sea."}))
    tokens = learned(example)
    assert tokens[-1] == tokenizer.eos_token_id
    assert tokens.count(tokenizer.eos_token_id) == 1
    expected = tokenizer("I live by the sea.", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(tokens[:-1]).strip() == tokenizer.decode(expected).strip()
    # The model sees the prompt alone when it generates: its tokens must be the same.
    prompt = tokenizer("Where do you live?")["input_ids"]
    prompt = prompt[:-1] if prompt[-1] == tokenizer.eos_token_id else prompt
    assert example["input_ids"][: len(example["labels"]) - len(tokens)].tolist() == prompt


def test_a_tokenizer_that_would_merge_prompt_and_response_tokenises_them_apart(rows: Callable[..., Path]) -> None:
    tokenizer = byte_level()
    assert len(tokenizer(" live")["input_ids"]) == 1, "the space belongs to the word"
    example = first(tokenizer, rows({"prompt": "I ", "response": "live"}))
    assert example["input_ids"].tolist() == [
        *tokenizer("I ")["input_ids"],
        *tokenizer("live")["input_ids"],
        tokenizer.eos_token_id,
    ]
    assert tokenizer.decode(learned(example)[:-1]) == "live"


def test_spaces_in_responses_are_learned_where_the_tokenizer_trims_offsets(rows: Callable[..., Path]) -> None:
    tokenizer = byte_level()
    begin, end = ("<|endoftext|>", tokenizer.pad_token_id), ("<|im_end|>", tokenizer.eos_token_id)
    trimming = processors.RobertaProcessing(end, begin, trim_offsets=True, add_prefix_space=False)
    tokenizer.backend_tokenizer.post_processor = trimming
    path = rows({"prompt": "Write code: ", "response": "def f():\n    return  1  "})
    example = first(tokenizer, path)
    assert tokenizer.decode(learned(example)) == "def f():\n    return  1  <|im_end|>"
    prompt = example["input_ids"][: len(example["input_ids"]) - len(learned(example))]
    assert tokenizer.decode(prompt) == "<|endoftext|>Write code: "


def test_columns_have_other_names_by_option_and_a_text_column_stays_the_default(rows: Callable[..., Path]) -> None:
    tokenizer = byte_level()
    path = rows({"question": "Where?", "answer": " Here.", "text": "Where? Here."})
    example = first(tokenizer, path, prompt="question", response="answer")
    assert tokenizer.decode(learned(example), skip_special_tokens=True) == " Here."
    whole = first(tokenizer, path)
    assert whole["labels"].tolist() == whole["input_ids"].tolist()


def test_a_column_of_the_name_label_is_a_response_like_others(rows: Callable[..., Path]) -> None:
    tokenizer = byte_level()
    path = rows({"review": "Good or bad?", "label": " Good."})
    example = first(tokenizer, path, prompt="review", response="label")
    assert tokenizer.decode(learned(example), skip_special_tokens=True) == " Good."
    whole = first(tokenizer, path, text="label")
    assert tokenizer.decode(whole["input_ids"], skip_special_tokens=True) == " Good."


@pytest.mark.parametrize("as_text", [False, True])
def test_all_messages_of_the_assistant_are_learned_with_the_end_of_their_turns(
    as_text: bool, rows: Callable[..., Path]
) -> None:
    tokenizer = byte_level()
    messages: Any = [{"role": "system", "content": "Be kind."}, QUESTION, ANSWER, NEXT, NAME]
    example = first(tokenizer, rows({"messages": json.dumps(messages) if as_text else messages}))
    text = tokenizer.decode(example["input_ids"])
    assert text.startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nWhere do you live?<|im_end|>\n")
    assert text.endswith("<|im_start|>assistant\nMy name is Pip.<|im_end|>")
    assert tokenizer.decode(learned(example)) == "I live by the sea.<|im_end|>My name is Pip.<|im_end|>"


def test_a_template_without_header_for_the_assistant(rows: Callable[..., Path]) -> None:
    tokenizer = metaspace()
    example = first(tokenizer, rows({"messages": [QUESTION, ANSWER, NEXT, NAME]}))
    assert tokenizer.decode(learned(example)) == "I live by the sea.</s> My name is Pip.</s>"
    assert example["input_ids"].tolist().count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("content", ["I am here.", "a", "  b"])
def test_what_a_template_writes_before_a_first_message_of_the_assistant_is_not_learned(
    content: str, rows: Callable[..., Path]
) -> None:
    # As Qwen's: it reads the first message, so it cannot write an empty conversation.
    system = (
        "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    )
    tokenizer = byte_level(system + str(byte_level().chat_template))
    example = first(tokenizer, rows({"messages": [{"role": "assistant", "content": content}, QUESTION, ANSWER]}))
    assert tokenizer.decode(learned(example)) == f"{content}<|im_end|>I live by the sea.<|im_end|>"
    assert tokenizer.decode(example["input_ids"]).startswith("<|im_start|>system\nYou are a helpful assistant.")


def test_a_template_without_end_of_turn_gets_the_end_token(rows: Callable[..., Path]) -> None:
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    tokenizer = byte_level(template + "{% if add_generation_prompt %}assistant:{% endif %}")
    example = first(tokenizer, rows({"messages": [QUESTION, ANSWER]}))
    assert tokenizer.decode(learned(example)) == " I live by the sea.<|im_end|>"


def test_what_follows_the_last_response_is_left_out(rows: Callable[..., Path]) -> None:
    tokenizer = byte_level()
    example = first(tokenizer, rows({"messages": [QUESTION, ANSWER, NEXT]}))
    assert tokenizer.decode(example["input_ids"]).endswith("I live by the sea.<|im_end|>")


def test_without_a_chat_template_messages_are_refused(rows: Callable[..., Path]) -> None:
    data = data_of(byte_level(None), rows({"messages": [QUESTION, ANSWER]}))
    with pytest.raises(MisconfigurationException, match=r"has no chat template.*data.prompt, data.resp"):
        data.setup("fit")


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([QUESTION], r"line 1: 'messages' has no message of the role 'assistant', expected at least one"),
        ("Hello", r"line 1: 'messages' is 'Hello', expected a list of messages"),
        ([], r"line 1: the text 'messages' is empty"),
        ([{"content": "a"}, ANSWER], r"line 1: 'messages' has as message 1 \{'content': 'a'\}, expected"),
        ([QUESTION, {"role": "assistant", "content": 7}], r"in message 2 the content 7, expected text"),
        ([QUESTION, {"role": "assistant", "content": " "}], r"line 1: the text 'messages' is empty"),
    ],
)
def test_messages_that_are_none_are_named_with_their_row(
    messages: Any, problem: str, rows: Callable[..., Path]
) -> None:
    with pytest.raises(MisconfigurationException, match=problem):
        data_of(byte_level(), rows({"messages": messages})).setup("fit")


def test_a_role_that_the_template_refuses_is_named_with_its_row(rows: Callable[..., Path]) -> None:
    path = rows({"messages": [QUESTION, ANSWER]}, {"messages": [{"role": "tool", "content": "4"}, QUESTION, ANSWER]})
    with pytest.raises(MisconfigurationException, match=r"line 2: 'messages' is refused by the chat .*Only user"):
        data_of(metaspace(), path).setup("fit")


def test_a_template_that_rewrites_earlier_turns_is_refused(rows: Callable[..., Path]) -> None:
    template = BRACKETS.replace(
        "{{ message['content'] }}{{ eos", "{{ message['content'] if loop.last else '-' }}{{ eos"
    )
    path = rows({"messages": [QUESTION, ANSWER, NEXT, NAME]})
    with pytest.raises(MisconfigurationException, match="written differently by the chat template when message 2"):
        data_of(metaspace(template), path).setup("fit")


def test_a_long_prompt_loses_its_beginning_and_the_response_stays(
    rows: Callable[..., Path], capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = metaspace()
    path = rows({"prompt": "a b c d e f g h " * 9 + "Where?", "response": " I live by the sea."})
    with caplog.at_level("INFO"):
        example = first(tokenizer, path, max_length=30)
    assert len(example["input_ids"]) == 30
    assert tokenizer.decode(learned(example)).strip() == "I live by the sea.</s>"
    assert tokenizer.decode(example["input_ids"][:-1]).endswith("Where? I live by the sea.")
    assert int(example["input_ids"][0]) == tokenizer.bos_token_id
    assert "1 of 1 rows have more than 30 tokens: the beginning of their prompts is left out (first at line 1)" in (
        caplog.text + "".join(capfd.readouterr())
    )


def test_a_long_response_loses_its_end_keeps_part_of_the_prompt_and_one_warning_counts_it(
    rows: Callable[..., Path],
) -> None:
    tokenizer = byte_level()
    path = rows({"prompt": "Where?", "response": " Here."}, {"prompt": "Where? " * 9, "response": " by the sea" * 50})
    data = data_of(tokenizer, path, max_length=20)
    with pytest.warns(UserWarning, match=r"1 of 2 rows have more than 20 tokens: 1 of them lose the end.*at line 2"):
        data.setup("fit")
    example = data.encoded["train"][1]
    assert (example["labels"] == -100).sum() == 5, "a quarter is left for the prompt"
    assert len(learned(example)) == 15
    assert tokenizer.eos_token_id not in learned(example), "the model must not learn to end there"


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_not_learned_on_either_side_of_the_tokenizer(side: str, rows: Callable[..., Path]) -> None:
    tokenizer = byte_level()
    tokenizer.padding_side = side
    path = rows({"prompt": "Where?", "response": " Here."}, {"prompt": "Where do you live?", "response": " Here."})
    data = data_of(tokenizer, path, batch_size=2)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert (batch["labels"][batch["attention_mask"] == 0] == -100).all()
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        assert tokenizer.decode(labels[labels != -100]) == " Here.<|im_end|>"
        assert torch.equal(labels[labels != -100], ids[labels != -100])


def test_the_end_token_is_learned_where_it_also_pads(rows: Callable[..., Path]) -> None:
    tokenizer = byte_level(None)
    tokenizer.pad_token = tokenizer.eos_token
    path = rows({"prompt": "Where?", "response": " Here."}, {"prompt": "Where do you live?", "response": " Here."})
    data = data_of(tokenizer, path, batch_size=2)
    data.setup("fit")
    labels = next(iter(data.train_dataloader()))["labels"]
    assert (labels == tokenizer.eos_token_id).sum(1).tolist() == [1, 1]


def test_a_prompt_to_continue_ends_where_the_response_begins(rows: Callable[..., Path]) -> None:
    path = rows({"messages": [QUESTION, ANSWER, NEXT]}, {"messages": [QUESTION, ANSWER]})
    data = TextDataModule(byte_level(), "causal-lm", predict=str(path))
    data.setup("predict")
    texts = [data.tokenizer.decode(example["input_ids"]) for example in data.encoded["predict"]]
    assert texts[0].endswith("What is your name?<|im_end|>\n<|im_start|>assistant\n")
    assert texts[1] == "<|im_start|>user\nWhere do you live?<|im_end|>\n<|im_start|>assistant\n"
    prompts = TextDataModule(metaspace(), "causal-lm", predict=str(rows({"prompt": "Where?"}, name="b.jsonl")))
    prompts.setup("predict")
    ids = prompts.encoded["predict"][0]["input_ids"].tolist()
    assert ids == prompts.tokenizer("Where?")["input_ids"]


@pytest.mark.parametrize("adds_end", [False, True])
@pytest.mark.parametrize("column", ["prompt", "text"])
def test_an_end_token_that_was_written_at_the_end_of_a_prompt_stays_there(
    column: str, adds_end: bool, rows: Callable[..., Path]
) -> None:
    tokenizer = metaspace(None)
    plain = tokenizer("Where?</s>")["input_ids"]
    if adds_end:
        tokens = [("<s>", tokenizer.bos_token_id), ("</s>", tokenizer.eos_token_id)]
        adding = processors.TemplateProcessing(single="<s> $A </s>", pair="<s> $A $B </s>", special_tokens=tokens)
        tokenizer.backend_tokenizer.post_processor = adding
    path = rows({column: "Where?</s>", "response": " Here."})
    data = TextDataModule(tokenizer, "causal-lm", train=str(path), predict=str(path))
    data.setup("predict")
    assert data.encoded["predict"][0]["input_ids"].tolist() == plain
    if column == "prompt":
        data.setup("fit")
        assert data.encoded["train"][0]["input_ids"][: len(plain)].tolist() == plain


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"task": "classification", "prompt": "a"}, "data.prompt='a' is for the task 'causal-lm': expected data.text"),
        ({"task": "seq2seq-lm", "response": "a"}, "expected data.text and data.label for 'seq2seq-lm'"),
        ({"prompt": "a", "text": "b"}, "data.text='b' and data.prompt='a' are both given"),
        ({"prompt": "a", "messages": "b"}, "data.prompt='a' and data.messages='b' are both given"),
        (
            {"prompt": "a", "response": "a"},
            "The column 'a' is given twice: expected another one for each of",
        ),
        ({"task": "classification", "packing": True}, "data.packing is for the task 'causal-lm'"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(MisconfigurationException, match=problem):
        TextDataModule(**{"task": "causal-lm", "train": "a.csv", **settings})


def test_a_missing_response_column_and_an_empty_response(rows: Callable[..., Path]) -> None:
    with pytest.raises(MisconfigurationException, match=r"has no column 'response' \(data.response\)"):
        data_of(byte_level(), rows({"prompt": "a", "reponse": "b"})).setup("fit")
    path = rows({"prompt": "a", "response": ""}, {"prompt": "a", "response": "b"})
    with pytest.raises(MisconfigurationException, match="line 1: the text 'response' is empty"):
        data_of(byte_level(), path).setup("fit")
    data = data_of(byte_level(), path, empty_text="drop")
    data.setup("fit")
    assert len(data.encoded["train"]) == 1


def test_predictions_are_written_beside_what_was_read(rows: Callable[..., Path]) -> None:
    task = get_task("causal-lm")
    output = {"predictions": torch.tensor([[1]]), "text": ["By the sea."], "index": torch.tensor([0])}
    for row, column in (({"prompt": "Where?"}, "prompt"), ({"messages": [QUESTION]}, "messages")):
        data = TextDataModule(byte_level(), "causal-lm", predict=str(rows(row)))
        (record,) = prediction_rows(data.tables["predict"], task, data.columns, [output])
        assert record == {"line": 1, column: row[column], "prediction": "By the sea."}
