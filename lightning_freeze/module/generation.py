"""What a language model writes: how much it may write, and how its responses compare with the expected ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torchmetrics import Metric
from torchmetrics.text import SQuAD

from lightning_freeze.module.pooling import accepted
from lightning_freeze.module.pretrained.limits import InputLimits
from lightning_freeze.module.tasks import IGNORE_INDEX, first_tensor


@dataclass(frozen=True)
class Prompts:
    """The prompts of a batch, cut off before the last response.

    Args:
        inputs: ``input_ids`` and ``attention_mask`` ``(batch, sequence)``, padded on the left, as ``generate`` needs.
        responses: The token ids of the expected responses.
    """

    inputs: dict[str, Tensor]
    responses: list[Tensor]


def split_prompts(inputs: Mapping[str, Any], labels: Tensor) -> Prompts | None:
    """Divide the examples of a batch into prompts and responses.

    Args:
        inputs: ``input_ids`` and, if there is padding, ``attention_mask`` ``(batch, sequence)``.
        labels: ``(batch, sequence)``, -100 except in responses.

    Returns:
        The examples that begin with a prompt; ``None`` if there are none, as where whole texts are learned.
    """
    ids = inputs["input_ids"]
    mask = inputs.get("attention_mask")
    real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask != 0
    prompts, responses = [], []
    for row, counts, tokens in zip(ids, labels != IGNORE_INDEX, real, strict=True):
        places = counts.nonzero().flatten()
        if not len(places):
            continue
        stop = int(places[-1]) + 1
        before = (~counts[:stop]).nonzero().flatten()
        start = int(before[-1]) + 1 if len(before) else 0
        prompt = row[:start][tokens[:start]]
        if len(prompt):
            prompts.append(prompt)
            responses.append(row[start:stop])
    if not prompts:
        return None
    padded = pad_sequence(prompts, batch_first=True, padding_side="left")
    kept = pad_sequence([torch.ones_like(prompt) for prompt in prompts], batch_first=True, padding_side="left")
    return Prompts({"input_ids": padded, "attention_mask": kept}, responses)


def parts_with_room(prompts: Prompts | None, positions: int | None, wanted: Any) -> list[Prompts]:
    """Divide prompts so that a short one is not cut in its response because a long one is in the same batch.

    Args:
        prompts: As :func:`split_prompts` returns them.
        positions: How many tokens the model can read, where that is known.
        wanted: The new tokens that are asked for.

    Returns:
        Parts whose prompts leave the same number of positions, or as many as are asked for.
    """
    if prompts is None:
        return []
    lengths = prompts.inputs["attention_mask"].sum(1).tolist()
    if positions is None or not isinstance(wanted, int) or max(lengths) + wanted <= positions:
        return [prompts]
    groups: dict[int, list[int]] = {}
    for row, length in enumerate(lengths):
        groups.setdefault(min(wanted, positions - length), []).append(row)
    parts = []
    for rows in groups.values():
        longest = max(lengths[row] for row in rows)
        inputs = {name: values[rows, -longest:] for name, values in prompts.inputs.items()}
        parts.append(Prompts(inputs, [prompts.responses[row] for row in rows]))
    return parts


def generate(model: nn.Module, inputs: dict[str, Any], settings: Mapping[str, Any], limits: InputLimits) -> Tensor:
    """Return the tokens that a language model writes, ``(batch, sequence)``.

    Args:
        model: A model with ``generate``.
        inputs: Model inputs by name, as the model expects them.
        settings: Arguments for ``generate``; ``max_new_tokens`` among them.
        limits: What the model can read.
    """
    inputs = accepted(model, inputs)
    is_encoder_decoder = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    settings = generate_settings(settings, limits, first_tensor(inputs).shape[1], is_encoder_decoder)
    written: Tensor = model.generate(**inputs, **settings)  # type: ignore[operator]
    return written


def generate_settings(
    settings: Mapping[str, Any], limits: InputLimits, length: int, is_encoder_decoder: bool
) -> dict[str, Any]:
    """Return the arguments for ``generate``, with no more new tokens than the model has positions for.

    Args:
        settings: The arguments that the user asks for; ``max_new_tokens`` among them.
        limits: What the model can read.
        length: Number of tokens of the prompts, padding included.
        is_encoder_decoder: Whether the prompts take no positions of the decoder.
    """
    wanted = settings["max_new_tokens"]
    if limits.positions is None or not isinstance(wanted, int):
        return dict(settings)
    used = 0 if is_encoder_decoder else length
    return {**settings, "max_new_tokens": max(1, min(wanted, limits.positions - used))}


class ResponseOverlap(Metric):
    """How far generated responses agree with the expected ones: exact match, and F1 of their words.

    Both are those of SQuAD (Rajpurkar et al., 2016): case, punctuation and English articles do not count, words are
    what white space separates, and the F1 score is averaged over responses. Values lie between 0 and 1.
    """

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.squad = SQuAD()
        self.is_empty = True

    def update(self, preds: Sequence[str], target: Sequence[str]) -> None:
        """Add responses.

        Args:
            preds: What the model wrote.
            target: What was expected.
        """
        self.is_empty = False
        written = [{"prediction_text": text, "id": str(i)} for i, text in enumerate(preds)]
        expected: list[Any] = [
            {"answers": {"answer_start": [0], "text": [text]}, "id": str(i)} for i, text in enumerate(target)
        ]
        self.squad.update(written, expected)

    def compute(self) -> dict[str, Tensor]:
        """Return ``exact_match`` and ``token_f1``."""
        scores = self.squad.compute()
        return {"exact_match": scores["exact_match"] / 100, "token_f1": scores["f1"] / 100}

    def reset(self) -> None:
        """Forget all responses."""
        super().reset()
        self.squad.reset()
        self.is_empty = True


def decode(tokenizer: Any, rows: Sequence[Tensor]) -> list[str]:
    """Return the text of token ids, special tokens left out; the ids as words where there is no tokenizer.

    Args:
        tokenizer: A tokenizer of transformers, or None.
        rows: Token ids.
    """
    if tokenizer is None:
        return [" ".join(str(token) for token in row.tolist()) for row in rows]
    return [str(text).strip() for text in tokenizer.batch_decode(list(rows), skip_special_tokens=True)]
