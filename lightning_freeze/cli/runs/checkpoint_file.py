"""Reads a checkpoint before anything is built from it."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import torch

from lightning_freeze.errors import ConfigurationError, suggest

#: Names that the trainer itself resolves to a path.
_SPECIAL = ("best", "last", "hpc", "registry")
# Every checkpoint of a Trainer has these.
_KEYS = ("state_dict", "pytorch-lightning_version")


def saved_hyperparameters(path: str | None) -> dict[str, Any]:
    """Return the hyperparameters in a checkpoint; none if it is not a local file.

    Args:
        path: A file or folder, or a name for one (``"best"``, ``"last"``, an address).

    Raises:
        ConfigurationError: If it does not exist, or is no checkpoint.
    """
    if path is None or path in _SPECIAL or "://" in str(path) or str(path).startswith("registry:"):
        return {}
    if Path(path).is_dir() and not (Path(path) / "config.json").is_file():
        return {}
    hyperparameters: dict[str, Any] = read_checkpoint(path).get("hyper_parameters", {})
    return hyperparameters


def read_checkpoint(path: str) -> dict[str, Any]:
    """Return the content of a checkpoint; tensors are read from the file when they are needed.

    Args:
        path: The file.

    Raises:
        ConfigurationError: If it does not exist, or is no checkpoint.
    """
    file = Path(path)
    if not file.exists():
        names = sorted(p.name for p in file.parent.glob("*.ckpt")) if file.parent.is_dir() else []
        raise ConfigurationError(
            f"The checkpoint {str(path)!r} does not exist: expected a .ckpt file.{suggest(file.name, names)}"
        )
    if file.is_dir():
        kind = "the folder of a model" if (file / "config.json").is_file() else "a folder"
        raise ConfigurationError(f"{str(path)!r} is {kind}, not a checkpoint: expected a .ckpt file of a run.")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, IndexError, AttributeError, KeyError, ValueError) as error:
        raise ConfigurationError(
            f"{str(path)!r} is not a checkpoint that can be read{_object_in(error)}: expected a .ckpt file of an "
            "earlier run."
        ) from error
    missing = [key for key in _KEYS if not isinstance(content, dict) or key not in content]
    if missing:
        raise ConfigurationError(
            f"{str(path)!r} is not a checkpoint of a Trainer, it has no {missing[0]!r}: expected a .ckpt file of an "
            "earlier run."
        )
    return dict(content)


def _object_in(error: Exception) -> str:
    found = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
    return f", because it holds a {found[1]}, which is not loaded as that could run code" if found else ""
