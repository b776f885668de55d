"""Rows into the text that a language model reads, with the spans of characters that it learns to write."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise, takewhile
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from lightning_freeze.data.language_models.messages import ASSISTANT, Message, last_response
from lightning_freeze.errors import ConfigurationError


@dataclass(frozen=True)
class RenderedText:
    """A text with its responses.

    Args:
        text: The text, up to the end of the last response.
        responses: The start and end of each response, in characters; none in a text to be continued.
        special_tokens: Whether the tokenizer adds its special tokens. A chat template writes them into the text.
    """

    text: str
    responses: tuple[tuple[int, int], ...] = ()
    special_tokens: bool = True

    @property
    def segments(self) -> list[tuple[str, bool]]:
        """The text cut at the ends of the responses, and whether each part is a response; no part is empty."""
        cuts = [0, *(end for span in self.responses for end in span), len(self.text)]
        parts = [(self.text[start:stop], i % 2 == 1) for i, (start, stop) in enumerate(pairwise(cuts))]
        return [(text, is_response) for text, is_response in parts if text]


def render_pair(prompt: str, response: str) -> RenderedText:
    """Return a prompt with its response; nothing is added between the two.

    Args:
        prompt: What the model reads.
        response: What the model learns to write.
    """
    return RenderedText(prompt + response, ((len(prompt), len(prompt) + len(response)),))


def render_messages(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> RenderedText:
    """Return a conversation as the chat template writes it; all messages of the assistant are responses.

    A response begins where a model that is asked for it would begin, and ends with the end of its turn. What follows
    the last response is left out.

    Args:
        tokenizer: A tokenizer with a chat template.
        messages: At least one of the assistant.

    Raises:
        ValueError: The template refuses the messages, or writes a message differently once others follow it.
    """
    last = last_response(messages)
    if last is None:
        raise ValueError("has no message of the role 'assistant', expected at least one")
    messages = messages[: last + 1]
    whole = _apply(tokenizer, messages, False)
    spans = []
    for i, message in enumerate(messages):
        if message["role"] != ASSISTANT:
            continue
        before = _apply(tokenizer, messages[:i], True)
        if not whole.startswith(before):  # the template writes no header for the assistant, or none without a message
            before = _apply(tokenizer, messages[:i], False)
        after = _apply(tokenizer, messages[: i + 1], False)
        if not before:
            before = _header_of_first(tokenizer, message, after)
        if not (whole.startswith(after) and after.startswith(before) and len(before) < len(after)):
            raise ValueError(
                f"is written differently by the chat template when message {i + 1} is the last one, expected one "
                "message of the assistant in each row, or a template that keeps earlier messages as they are"
            )
        # Most templates begin a new line after a turn, which is not part of the response.
        spans.append((len(before), len(before) + max(1, len(after[len(before) :].rstrip()))))
    return RenderedText(whole[: spans[-1][1]], tuple(spans), special_tokens=False)


def render_history(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> RenderedText:
    """Return what a model reads before it writes the next message: the messages, without a last one of the assistant.

    Args:
        tokenizer: A tokenizer with a chat template.
        messages: At least one that is not of the assistant.

    Raises:
        ValueError: The template refuses the messages.
    """
    if messages[-1]["role"] == ASSISTANT:
        messages = messages[:-1]
    if not messages:
        raise ValueError("has no message but one of the assistant, expected one to respond to")
    return RenderedText(_apply(tokenizer, messages, True), special_tokens=False)


def require_chat_template(tokenizer: PreTrainedTokenizerBase, column: str) -> None:
    """Check that a tokenizer can write messages.

    Args:
        tokenizer: Any tokenizer of transformers.
        column: The column of the messages, for the message.

    Raises:
        ConfigurationError: It has no chat template.
    """
    if getattr(tokenizer, "chat_template", None) is None:
        name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
        raise ConfigurationError(
            f"The tokenizer {name!r} has no chat template, so the messages in {column!r} cannot be turned into text: "
            "expected tokenizer.chat_template to be set and saved with tokenizer.save_pretrained, the tokenizer of a "
            "chat model, or columns of prompts and responses (data.prompt, data.response)."
        )


def _header_of_first(tokenizer: PreTrainedTokenizerBase, message: Message, written: str) -> str:
    """Return what a template writes before the content of a first message, a default system prompt included.

    Many templates cannot say it of no messages at all. It is what messages of other contents begin with too.
    """
    content = "b" if str(message["content"]).lstrip().startswith("a") else "a"
    other = _apply(tokenizer, [{**message, "content": content}], False)
    pairs = zip(written, other, strict=False)
    return "".join(character for character, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _apply(tokenizer: Any, messages: list[Message], asks: bool) -> str:
    if not messages and not asks:
        return ""
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=asks))
    except (TemplateError, ValueError, TypeError, KeyError, IndexError) as error:
        if not messages:  # templates that read the first message
            return ""
        problem = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"is refused by the chat template of the tokenizer: {problem}") from error
