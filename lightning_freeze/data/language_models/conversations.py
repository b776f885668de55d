"""Rows with responses into examples: rendered, tokenised, cut to length, and labelled."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from transformers import PreTrainedTokenizerBase

from lightning_freeze.data.language_models.masking import TokenizedText, fit, tokenize, tokenize_prompts
from lightning_freeze.data.language_models.messages import read_messages
from lightning_freeze.data.language_models.rendering import (
    RenderedText,
    render_history,
    render_messages,
    render_pair,
    require_chat_template,
)
from lightning_freeze.data.reading.table import Table
from lightning_freeze.errors import ConfigurationError


def encode_conversations(
    table: Table,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | None,
    response: str | None,
    messages: str | None,
    limit: int,
    for_prediction: bool,
    chunks: Iterable[range],
) -> list[dict[str, Any]]:
    """Tokenise prompts with responses, or messages; labels are -100 except in responses.

    Args:
        table: The rows; their texts have been checked.
        tokenizer: Any tokenizer of transformers; for messages, one with a chat template.
        prompt: The column of the prompts.
        response: The column of the responses.
        messages: The column of the messages, in place of the two.
        limit: The most tokens of an example.
        for_prediction: Whether the model is to write the responses.
        chunks: The rows that are tokenised together.

    Returns:
        One example for each row, with ``input_ids``, ``labels`` (not for prediction) and ``index``.

    Raises:
        ConfigurationError: There is no chat template, it refuses a row, or a row has no tokens.
    """
    if messages is not None:
        require_chat_template(tokenizer, messages)
    examples: list[dict[str, Any]] = []
    cut: list[tuple[int, TokenizedText]] = []
    for rows in chunks:
        if for_prediction:
            texts = [_history(table, i, tokenizer, prompt, messages) for i in rows]
            for row, ids in zip(rows, tokenize_prompts(tokenizer, texts, limit), strict=True):
                _check_length(table, row, ids, 1)
                examples.append({"input_ids": torch.tensor(ids, dtype=torch.int32), "index": row})
            continue
        texts = [_conversation(table, i, tokenizer, prompt, response, messages) for i in rows]
        for row, text in zip(rows, tokenize(tokenizer, texts), strict=True):
            fitted = fit(tokenizer, text, limit)
            cut += [(row, fitted)] if fitted.lost_prompt or fitted.lost_response else []
            # A model predicts each token from the ones before, so the first one cannot be learned.
            _check_length(table, row, fitted.ids[1:] if any(fitted.trained[1:]) else [], 1)
            tensors = {"input_ids": fitted.ids, "labels": fitted.labels}
            example = {key: torch.tensor(values, dtype=torch.int32) for key, values in tensors.items()}
            examples.append({**example, "index": row})
    _report_cut(table, cut, limit)
    return examples


def _conversation(
    table: Table,
    i: int,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | None,
    response: str | None,
    messages: str | None,
) -> RenderedText:
    if messages is None:
        return render_pair(table.text(i, str(prompt)), table.text(i, str(response)))
    try:
        return render_messages(tokenizer, read_messages(table.rows[i].get(messages)))
    except ValueError as error:
        raise table.error(i, messages, error) from error


def _history(
    table: Table, i: int, tokenizer: PreTrainedTokenizerBase, prompt: str | None, messages: str | None
) -> RenderedText:
    if messages is None:
        return RenderedText(table.text(i, str(prompt)))
    try:
        return render_history(tokenizer, read_messages(table.rows[i].get(messages)))
    except ValueError as error:
        raise table.error(i, messages, error) from error


def _check_length(table: Table, row: int, ids: Sequence[int], least: int) -> None:
    if len(ids) < least:
        raise ConfigurationError(
            f"{table.where(row)}: the tokenizer finds no tokens to learn or to continue: expected a prompt and a "
            "response of at least one token each."
        )


def _report_cut(table: Table, cut: list[tuple[int, TokenizedText]], limit: int) -> None:
    if not cut:
        return
    responses = [row for row, text in cut if text.lost_response]
    lost = f"{len(cut)} of {len(table)} rows have more than {limit} tokens"
    where = f"(first at {table.unit} {table.numbers[cut[0][0]]})"
    if not responses:
        rank_zero_info(f"{table.name}: {lost}: the beginning of their prompts is left out {where}.")
        return
    rank_zero_warn(
        f"{table.name}: {lost}: {len(responses)} of them lose the end of the response "
        f"(first at {table.unit} {table.numbers[responses[0]]}), the others the beginning of the prompt. Expected a "
        "larger data.max_length, or shorter responses."
    )
