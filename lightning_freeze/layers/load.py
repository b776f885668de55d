"""From a model's name or path to its structure, without its weights."""

from __future__ import annotations

import os
from pathlib import Path

import torch
import transformers
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from transformers import AutoConfig, AutoModel, PretrainedConfig

from lightning_freeze.errors import closest


def check_source(name_or_path: str | os.PathLike[str]) -> str:
    """Check that a model's folder exists, as far as that can be known without the network.

    Args:
        name_or_path: A folder with a ``config.json``, or the name of a model on a hub.

    Returns:
        The same as a string, ``~`` expanded.

    Raises:
        MisconfigurationException: If it is a path and no such folder exists, or the folder holds no ``config.json``.
    """
    text = os.fspath(name_or_path)
    path = Path(text).expanduser()
    if not text.strip():
        raise MisconfigurationException(
            "The model's name is empty: give a folder with a config.json or a model's name."
        )
    if path.is_dir():
        if not (path / "config.json").is_file():
            found = sorted(str(p.parent) for p in path.glob("*/config.json"))
            hint = f" Did you mean {found[0]!r}?" if found else ""
            raise MisconfigurationException(
                f"The folder {text!r} holds no config.json: it is no saved model (see `save_pretrained`).{hint}"
            )
        return str(path)
    if path.is_file():
        raise MisconfigurationException(
            f"{text!r} is a file: give the folder that holds the model (config.json and the weights)."
        )
    if _looks_like_path(text):
        raise MisconfigurationException(
            f"The model folder {text!r} does not exist (looked for {str(path.absolute())!r}).{_nearest(path)}"
        )
    return text


def load_config(name_or_path: str | os.PathLike[str]) -> PretrainedConfig:
    """Load a model's configuration.

    Args:
        name_or_path: A folder with a ``config.json``, or the name of a model on a hub.

    Returns:
        The configuration.

    Raises:
        MisconfigurationException: If there is no such model, or it cannot be reached.
    """
    source = check_source(name_or_path)
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise MisconfigurationException(unreachable(source, reason)) from error
    return config


def unreachable(source: str, reason: str) -> str:
    """The message for a model that could not be loaded: what was asked for, why it failed and what to do.

    Args:
        source: The name or path that was given.
        reason: First line of the error.

    Returns:
        One message.
    """
    if Path(source).exists():
        return f"The model in {source!r} cannot be read: {reason}"
    return (
        f"The model {source!r} is no folder here, not in the local cache, and could not be fetched{_offline()}: "
        f"{reason} Check the spelling; without a network, give the path of a folder saved with `save_pretrained`, or "
        "fetch the model once where there is one and copy the cache."
    )


def load_structure(name_or_path: str | os.PathLike[str]) -> nn.Module:
    """Build a model from its configuration on the meta device: its structure, with no weights loaded.

    Args:
        name_or_path: A folder with a ``config.json``, or the name of a model on a hub.

    Returns:
        A model of the class that the configuration names in ``architectures``, else the plain model for its type.

    Raises:
        MisconfigurationException: If there is no such model, it cannot be reached, or it cannot be built.
    """
    config = load_config(name_or_path)
    names = [name for name in config.architectures or [] if hasattr(transformers, name)]
    try:
        with torch.device("meta"):
            build = getattr(transformers, names[0]) if names else AutoModel.from_config
            model: nn.Module = build(config)
    except (ValueError, TypeError, ImportError, NotImplementedError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise MisconfigurationException(
            f"The model of type {config.model_type!r} from {os.fspath(name_or_path)!r} cannot be built: {reason}"
        ) from error
    return model


def _looks_like_path(text: str) -> bool:
    return text.startswith((".", "/", "~")) or "\\" in text or text.count("/") > 1 or text.endswith("/")


def _nearest(path: Path) -> str:
    folder = path.absolute().parent
    if not folder.is_dir():
        return ""
    return closest(str(path.absolute()), (str(p) for p in folder.iterdir() if p.is_dir()))


def _offline() -> str:
    offline = any(
        os.environ.get(name, "").lower() in {"1", "true", "yes", "on"}
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    )
    return " (offline mode is on)" if offline else ""
