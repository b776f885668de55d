"""Build a model's structure from its name or path, without weights."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedModel

from lightning_freeze.errors import ConfigurationError
from lightning_freeze.module.pretrained.hub import NO_REMOTE_CODE, resolve
from lightning_freeze.module.pretrained.precision import DTYPE_ARGUMENT


def load_structure(name_or_path: str | os.PathLike[str]) -> nn.Module:
    """Build a model from its configuration on the meta device: its structure, with no weights loaded.

    Args:
        name_or_path: A folder with a ``config.json``, or the name of a model on a hub.

    Returns:
        A model of the class that the configuration names in ``architectures``, else the plain model for its type.

    Raises:
        ConfigurationError: If there is no such model, it cannot be reached, or it cannot be built.
    """
    name = os.fspath(name_or_path)
    source, options = resolve(name, what="model")
    try:
        config = AutoConfig.from_pretrained(source, **options, **NO_REMOTE_CODE)
    except Exception as error:  # whatever transformers raises for a file that holds something else
        raise ConfigurationError(f"The configuration of model {name!r} cannot be read: {_reason(error)}") from error
    try:
        with torch.device("meta"):
            model = _model_class(config)(config)
    except Exception as error:  # whatever the code of a model raises for numbers that do not fit it
        raise ConfigurationError(
            f"The model of type {config.model_type!r} from {name!r} cannot be built: {_reason(error)}"
        ) from error
    return model


def _model_class(config: Any) -> Callable[[Any], nn.Module]:
    """Return the class that a config names; what it names is looked up among models only."""
    for name in config.architectures or []:
        found = getattr(transformers, name, None)
        if isinstance(found, type) and issubclass(found, PreTrainedModel):
            return found
    # As float32: a table of layers counts the weights as they are trained, whatever precision they are stored in.
    return partial(AutoModel.from_config, **NO_REMOTE_CODE, **{DTYPE_ARGUMENT: torch.float32})


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
