"""Whether a model computes packed examples as if each were alone.

A few tokens of two examples are run in batches as training makes them, without a gradient. Two things are measured:

- Whether an example changes with the content of the other one in its row. Shapes and kernels stay the same, so a model
  that is right returns the same bits, in any precision.
- Whether an example differs from itself alone, as it does where its positions go on from the other one. Shapes differ,
  so rounding has to be allowed for.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_freeze.data.language_models.packing import Example, PackedCollator, join
from lightning_freeze.errors import ConfigurationError
from lightning_freeze.module.batch import logits_of
from lightning_freeze.module.pooling import call_with
from lightning_freeze.module.task_module import TaskModule

# So many tokens of an example are run, and the other one is replaced so many times.
_LENGTH = 16
_VARIANTS = 3
_EPSILON = torch.finfo(torch.float32).eps

_ONE_ROW = (
    "Expected data.batch_size=1 with a larger data.max_length or accumulate_grad_batches, or another attention "
    "(model.model_kwargs.attn_implementation, such as 'sdpa')."
)


def check_packing(module: nn.Module, examples: Sequence[Example], batch_size: int) -> None:
    """Check that a model computes the same for packed examples as for each alone.

    Args:
        module: The module that trains.
        examples: The examples, not packed yet.
        batch_size: The rows of a training batch. Flash attention reads the boundaries of a single row only.

    Raises:
        ConfigurationError: The model does not tell packed examples apart.
    """
    model = next((child for child in module.modules() if isinstance(child, PreTrainedModel)), None)
    name = type(module if model is None else model).__name__
    if model is None or "position_ids" not in inspect.signature(model.forward).parameters:
        raise ConfigurationError(
            f"data.packing is True, and {name} takes no position_ids, which tell packed examples apart: expected "
            "data.packing=False, or a causal language model of transformers that takes them (Llama, Qwen, GPT-2, ...)."
        )
    called = module.model if isinstance(module, TaskModule) else model
    rows = min(batch_size, 2)
    try:
        effect = packing_effect(called, examples, rows)
    except Exception:  # weights on the meta device, kernels for another device: training will show whether it runs
        attention = str(getattr(model.config, "_attn_implementation", None))
        if rows > 1 and "flash" in attention:
            raise ConfigurationError(
                f"data.packing is True, data.batch_size is {batch_size}, and {name} runs with {attention!r}, which "
                f"reads the boundaries of packed examples in a single row only. {_ONE_ROW}"
            ) from None
        return
    if effect is None:
        return
    way_out = "Expected data.packing=False, or a model with another attention (model.model_kwargs.attn_implementation)."
    if rows > 1 and packing_effect(called, examples, 1) is None:
        way_out = f"With a single row it does not. {_ONE_ROW}"
    raise ConfigurationError(
        f"data.packing is True, data.batch_size is {batch_size}, and {name} reads across the boundaries of packed "
        f"examples: the logits of an example change by {effect:.2g} with another one in its row. {way_out}"
    )


def packing_effect(model: nn.Module, examples: Sequence[Example], rows: int) -> float | None:
    """Return by how much the logits of an example change when it is packed with another one.

    Args:
        model: What is called in training.
        examples: At least one with ``input_ids``.
        rows: How many rows a batch has, 1 or 2.

    Returns:
        The largest difference; ``None`` where it is no more than rounding.
    """
    first, second = (examples[i]["input_ids"][:_LENGTH].long() for i in (0, -1))
    known = torch.cat([examples[i]["input_ids"] for i in (0, -1)]).long().unique()
    others = [_replaced(first, known, step) for step in range(1, _VARIANTS + 1)]
    device = next(model.parameters()).device
    modes = {part: part.training for part in model.modules()}
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else None), torch.no_grad():
        try:
            model.eval()
            return _effect(model, first, second, others, rows)
        finally:
            for part, mode in modes.items():
                part.training = mode


def _effect(model: nn.Module, first: Tensor, second: Tensor, others: Sequence[Tensor], rows: int) -> float | None:
    def packed(other: Tensor) -> Tensor:
        found = _logits(model, [[other, second], [second, other]][:rows])
        behind = found[:1, len(other) : len(other) + len(second)]
        return torch.cat([behind, found[1:, : len(second)]])

    expected = packed(first)
    largest = max(1.0, float(expected.abs().max()))
    effect = max(_difference(packed(other), expected) for other in others)
    # Rounding of single precision is allowed for in any case: experts of a mixture read the tokens of a batch together.
    if effect > 100 * _EPSILON * largest and effect > 10 * _noise(model, first, second, others):
        return effect
    effect = _difference(_logits(model, [[second]])[:, : len(second)], expected)
    weights = [weight for weight in model.parameters() if weight.is_floating_point()]
    rounding = max(torch.finfo(weight.dtype).eps for weight in weights)
    return effect if effect > 100 * rounding * largest else None


def _noise(model: nn.Module, first: Tensor, second: Tensor, others: Sequence[Tensor]) -> float:
    """Return by how much the logits of an example change with the content of the other rows of a batch."""

    def beside(other: Tensor) -> Tensor:
        return _logits(model, [[second], [other]])[:1, : len(second)]

    expected = beside(first)
    return max(_difference(beside(other), expected) for other in others)


def _logits(model: nn.Module, rows: Sequence[Sequence[Tensor]]) -> Tensor:
    """Run rows of examples in a batch as training makes it."""
    joined = [join([{"input_ids": ids, "labels": ids, "index": 0} for ids in row]) for row in rows]
    length = max(len(row["input_ids"]) for row in joined)
    batch: dict[str, Any] = PackedCollator(int(rows[0][0][0]), length)(joined)
    device = next(model.parameters()).device
    tensors = {name: batch[name].to(device) for name in ("input_ids", "position_ids")}
    logits = logits_of(call_with(model, {**tensors, "use_cache": batch["use_cache"]}))
    return logits[:, -length:].float()  # adapters that learn a prompt put it before the text


def _replaced(ids: Tensor, known: Tensor, step: int) -> Tensor:
    """Return other tokens of the same examples, which the model can read, in place of these."""
    return known[(torch.searchsorted(known, ids) + step) % len(known)]


def _difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())
