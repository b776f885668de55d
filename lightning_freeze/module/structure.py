"""From a model's name or path to its structure, without its weights."""

from __future__ import annotations

import os

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModel

from lightning_freeze.errors import ConfigurationError
from lightning_freeze.module import hub


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
    source, options = hub.resolve(name, what="model")
    try:
        config = AutoConfig.from_pretrained(source, **options)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"The configuration of model {name!r} cannot be read: {_reason(error)}") from error
    classes = [c for c in config.architectures or [] if hasattr(transformers, c)]
    try:
        with torch.device("meta"):
            build = getattr(transformers, classes[0]) if classes else AutoModel.from_config
            model: nn.Module = build(config)
    except (ValueError, TypeError, ImportError, NotImplementedError, RuntimeError) as error:
        raise ConfigurationError(
            f"The model of type {config.model_type!r} from {name!r} cannot be built: {_reason(error)}"
        ) from error
    return model


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
