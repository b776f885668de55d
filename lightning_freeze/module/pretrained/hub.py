"""Finding models and tokenizers, with errors that say what to do if they are missing."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import getproxies

from huggingface_hub import constants, try_to_load_from_cache
from transformers.utils import logging as transformers_logging

from lightning_freeze.errors import ConfigurationError, suggest

NO_REMOTE_CODE = {"trust_remote_code": False}
"""Argument of every ``from_pretrained`` here. Without it transformers asks on the terminal whether to run a model's own
code; ``model_kwargs={"trust_remote_code": True}`` allows it."""


def resolve(name: str, what: str = "encoder") -> tuple[str, dict[str, Any]]:
    """Find where to load a model or tokenizer from, without a long wait if there is no network.

    Args:
        name: A local folder, or a model's name on the Hugging Face hub.
        what: What it is, for messages: ``"encoder"``, ``"model"`` or ``"tokenizer"``.

    Returns:
        The folder or name, and keyword arguments for ``from_pretrained``.

    Raises:
        ConfigurationError: It does not exist and cannot be downloaded.
    """
    if not name.strip():
        raise ConfigurationError(f"The {what} has no name: give a local folder or a model's name.")
    path = Path(name).expanduser()
    if path.is_dir():
        if what != "tokenizer" and not (path / "config.json").is_file() and not any(path.glob("*.gguf")):
            below = sorted(str(config.parent) for config in path.glob("*/config.json"))
            raise ConfigurationError(
                f"The {what} folder {name!r} has no config.json: expected a folder as save_pretrained writes it "
                f"(config.json, weights, tokenizer files).{f' Did you mean {below[0]!r}?' if below else ''}"
            )
        return str(path), {}
    if path.is_file():
        raise ConfigurationError(
            f"The {what} {name!r} is a file: expected the folder that holds it (config.json, weights, tokenizer)."
        )
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ConfigurationError(f"The {what} folder {name!r} does not exist.{_sibling(path)} {advice(name)}")
    offline = _offline_reason()
    if offline is None:
        return name, {}
    if isinstance(try_to_load_from_cache(name, "config.json"), str):
        return name, {"local_files_only": True}
    raise ConfigurationError(
        f"The {what} {name!r} is neither a local folder nor in the Hugging Face cache, and it cannot be downloaded: "
        f"{offline}.{_sibling(path)} {advice(name)}"
    )


def advice(name: str) -> str:
    """Return the advice for a model that cannot be found.

    Args:
        name: The folder or name that was given.
    """
    hub = name if name.count("/") <= 1 and not name.startswith((".", "/", "~")) else "NAME"
    return f"Give a local folder, or download the model once with `hf download {hub}` while online."


def _sibling(path: Path) -> str:
    parent = path.parent
    if not parent.is_dir():
        return f" Its parent folder {str(parent)!r} does not exist either."
    names = sorted(child.name for child in parent.iterdir() if child.is_dir() and not child.name.startswith("."))
    hint = suggest(path.name, names)
    return hint or (f" Folders beside it: {', '.join(map(repr, names[:5]))}." if names else "")


def _offline_reason() -> str | None:
    if constants.HF_HUB_OFFLINE or os.environ.get("TRANSFORMERS_OFFLINE", "0").upper() in ("1", "TRUE", "YES", "ON"):
        return "the network is switched off (HF_HUB_OFFLINE)"
    if getproxies():
        return None
    try:
        socket.getaddrinfo(urlparse(constants.ENDPOINT).hostname, 443)
    except OSError:
        return "there is no network connection"
    return None


@contextmanager
def quiet() -> Iterator[None]:
    """Hide the progress bar and load report of transformers: this package checks what matters in them."""
    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
