"""Models that a batch can be too short for, and models that read its padding."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

# Larger models are decoders, whose families mask padding; a copy of one would take too much memory.
_MOST_PARAMETERS = 10**9


def shortest_batch(model: nn.Module, training: bool = False) -> int:
    """Return how many tokens the rows of a batch must have, padding included, so that a model can run at all.

    CANINE and Funnel shorten their input, and nothing may be left of a short one. Reformer trains with as many
    positions as the axes of its position embeddings multiply to.

    Args:
        model: Any module; one that is not from transformers takes rows of any length.
        training: Whether the batch is for training.
    """
    config: Any = getattr(model, "config", None)
    kind = getattr(config, "model_type", None)
    if kind == "canine":
        return int(config.downsampling_rate)
    if kind == "funnel":
        return int(2 ** (len(config.block_sizes) - 1) + 1)
    if kind == "reformer" and training:
        return math.prod(config.axial_pos_shape) if config.axial_pos_embds else int(config.max_position_embeddings)
    return 1


def padding_effect(
    model: nn.Module, call: Callable[[nn.Module, dict[str, Any]], Tensor], examples: Sequence[dict[str, Any]]
) -> float | None:
    """Return by how much the logits of an example change when it is padded to the longest one.

    Models that transformers runs with its own attention kernels mask the padding; only others are measured: FNet has
    no mask, CANINE, ConvBERT, Funnel and Nystromformer have convolutions or pool neighbours, Yoso draws random hashes.
    MobileBERT is measured too, because it joins the embeddings of neighbours.
    A copy is measured, because some models change themselves when they see a batch (BigBird).

    Args:
        model: The model, or a wrapper around it.
        call: Returns the logits of a model for inputs by name, ``(batch, outputs)`` or ``(batch, sequence, outputs)``.
        examples: Examples with ``input_ids`` as 1-d tensors. A short one, a middle one and a long one are measured.

    Returns:
        The largest difference; None where it is no more than rounding, or where nothing is measured.
    """
    if not _may_read_padding(model) or not examples:
        return None
    ordered = sorted(examples, key=_length)
    longest = _length(ordered[-1])
    shorter = [example for example in ordered if _length(example) < longest]
    chosen = [shorter[0], shorter[len(shorter) // 2], shorter[-1]] if shorter else []
    device = next(model.parameters()).device
    least = max(map(shortest_batch, model.modules()))
    effects, largest = [], 1.0
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else None), torch.no_grad():
        try:
            for example in chosen:
                measured = copy.deepcopy(model).eval()
                # BigBird computes short batches exactly, and from then on long ones too.
                padded = call(measured, _padded(example, max(longest, least), device)).float()
                alone = call(measured, _padded(example, max(_length(example), least), device)).float()
                if alone.ndim == 3:
                    padded, alone = (logits[:, : _length(example)] for logits in (padded, alone))
                effects.append(float((alone - padded).abs().max()))
                largest = max(largest, float(alone.abs().max()))
        except Exception:  # e.g. kernels that need another device: training will show whether the model runs
            return None
    effect = max(effects, default=0.0)
    rounding = max(torch.finfo(weight.dtype).eps for weight in model.parameters() if weight.is_floating_point())
    return effect if effect > 100 * rounding * largest else None


def _may_read_padding(model: nn.Module) -> bool:
    pretrained = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    parameters = list(model.parameters())
    return (
        bool(pretrained)
        and not all(module._supports_sdpa and module.config.model_type != "mobilebert" for module in pretrained)
        and not any(parameter.is_meta for parameter in parameters)
        and sum(parameter.numel() for parameter in parameters) <= _MOST_PARAMETERS
    )


def _length(example: dict[str, Any]) -> int:
    return len(example["input_ids"])


def _padded(example: dict[str, Any], length: int, device: torch.device) -> dict[str, Tensor]:
    names = ("input_ids", "token_type_ids")
    inputs: dict[str, Tensor] = {name: example[name] for name in names if name in example}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    return {
        name: nn.functional.pad(value, (0, length - len(value))).long().unsqueeze(0).to(device)
        for name, value in inputs.items()
    }
