"""Hugging Face models with the head of a task."""

from __future__ import annotations

import inspect
from typing import Any

import transformers
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from safetensors import SafetensorError
from torch import nn

from lightning_freeze.errors import ConfigurationError
from lightning_freeze.module.hub import advice, quiet, resolve
from lightning_freeze.module.tasks import Task


def load_model(name: str, task: Task | None, pretrained: bool, **config: Any) -> nn.Module:
    """Load a model with the head of a task, or without a head, in training mode.

    Args:
        name: A local folder, or a model's name on the Hugging Face hub.
        task: The task whose head is wanted; None for the bare encoder.
        pretrained: Whether to load weights; otherwise the model is built from its config alone.
        **config: Overrides of the config, and further arguments for ``from_pretrained``.

    Raises:
        ConfigurationError: There is no such model, or it has no such head.
    """
    source, where = resolve(name)
    auto = getattr(transformers, task.auto_class if task else "AutoModel")
    try:
        with quiet():
            if not pretrained:
                settings, extra = transformers.AutoConfig.from_pretrained(
                    source, return_unused_kwargs=True, **where, **config
                )
                model = auto.from_config(_with_padding(settings), **extra)
            else:
                # A stored head for other classes does not fit, and is made anew like one that is not stored.
                model, info = auto.from_pretrained(
                    source, output_loading_info=True, ignore_mismatched_sizes=True, **where, **config
                )
                _with_padding(model.config)
                _check_encoder_weights(name, model, info)
    except (OSError, ValueError, SafetensorError) as error:
        raise ConfigurationError(_reason(name, task, error)) from error
    if task is None and getattr(model.config, "is_encoder_decoder", False):
        model = model.get_encoder()  # what a pooled head stands on; the decoder would ask for inputs of its own
    if task is None and "add_pooling_layer" in inspect.signature(type(model).__init__).parameters:
        # Nothing reads the pooler then, and DistributedDataParallel refuses parameters without a gradient.
        model.pooler = None
    module: nn.Module = model.train()
    return module


def _with_padding(config: Any) -> Any:
    """Give a decoder without a padding token one, so that it can tell a batch's last real tokens."""
    if getattr(config, "pad_token_id", None) is None:
        end = getattr(config, "eos_token_id", None)
        config.pad_token_id = end[0] if isinstance(end, list) else end
    return config


def _check_encoder_weights(name: str, model: Any, info: dict[str, Any]) -> None:
    """Tell apart a new head, which is as it should be, from an encoder that lacks its weights."""
    prefix = model.base_model_prefix + "."

    def in_encoder(key: str) -> bool:
        return "pooler" not in key and (key.startswith(prefix) or model.base_model is model)

    misfits = sorted(key for key, *_ in info["mismatched_keys"] if in_encoder(key))
    if misfits:
        raise ValueError(f"{len(misfits)} tensors of the encoder have another shape, for example {misfits[0]!r}.")
    missing = sorted(filter(in_encoder, info["missing_keys"]))
    if missing:
        rank_zero_warn(
            f"{len(missing)} tensors of the encoder are not in the weights of {name!r} and start at random values, for "
            f"example {missing[0]!r}. Check that the weights belong to this architecture."
        )


def _reason(name: str, task: Task | None, error: Exception) -> str:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if task is not None and "Unrecognized configuration class" in first:
        return (
            f"The encoder {name!r} has no head for the task {task.name!r} ({task.auto_class}): expected another task, "
            f"or pooling='mean', 'cls' or 'last' for a small head of our own."
        )
    return f"The encoder {name!r} could not be loaded: {first} {advice(name)}"
