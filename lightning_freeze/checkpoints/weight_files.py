"""Reads base weights from files, and writes a checkpoint, without running anything that is pickled in them."""

from __future__ import annotations

import contextlib
import os
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lightning_freeze.errors import ConfigurationError, suggest

_UNREADABLE = (
    *(pickle.UnpicklingError, RuntimeError, EOFError, IndexError, AttributeError, KeyError, ValueError, OSError),
    *(SafetensorError, ConfigurationError),
)
_KINDS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt")


def read_weights(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield names and tensors of a file of weights, or of a folder with a model.

    Args:
        path: A ``.safetensors`` file, one that ``torch.save`` has written, or a folder with either. Files of a folder
            that hold no weights, such as ``training_args.bin``, are passed over.

    Raises:
        ConfigurationError: If it does not exist, or nothing in it can be read.
    """
    problem: ConfigurationError | None = None
    for files in _files(path):
        is_read = False
        for file in files:
            try:
                for named in _read(file):
                    is_read = True
                    yield named
            except _UNREADABLE as error:
                problem = problem or _unreadable(file, error)
        if is_read:
            return
    if problem is not None:
        raise problem


def write_checkpoint(content: Mapping[str, Any], path: Path, overwrite: bool) -> None:
    """Write a checkpoint; the file is there when all of it is written, or not at all.

    Args:
        content: What to write.
        path: The file.
        overwrite: Whether to replace a file of that name.

    Raises:
        ConfigurationError: If the file exists, or cannot be written.
    """
    check_output(path, overwrite)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(partial, "wb") as file:
            torch.save(dict(content), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:
        raise ConfigurationError(f"{str(path)!r} cannot be written: {error}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def check_output(path: Path, overwrite: bool) -> None:
    """Refuse to write where nothing can be written, or where something else is.

    Args:
        path: The file to write.
        overwrite: Whether it may exist.

    Raises:
        ConfigurationError: If it is a folder, its folder does not exist, or the file exists.
    """
    if path.is_dir():
        raise ConfigurationError(f"{str(path)!r} is a folder: expected the name of a file to write.")
    if not path.parent.is_dir():
        raise ConfigurationError(f"The folder {str(path.parent)!r} does not exist: expected one for {path.name}.")
    if path.exists() and not overwrite:
        raise ConfigurationError(f"{str(path)!r} exists: expected another name, or --overwrite to replace it.")


def _files(path: Path) -> list[list[Path]]:
    """Return the files of each kind in a folder, the first kind to be tried first; or one file."""
    if path.is_file():
        return [[path]]
    if path.is_dir():
        found = [files for kind in _KINDS if (files := sorted(path.glob(kind)))]
        if found:
            return found
        raise ConfigurationError(f"The folder {str(path)!r} holds no weights: expected {', '.join(_KINDS)} in it.")
    names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    raise ConfigurationError(f"{str(path)!r} does not exist: expected base weights.{suggest(path.name, names)}")


def _unreadable(file: Path, error: Exception) -> ConfigurationError:
    problem = ConfigurationError(
        f"{str(file)!r} holds no weights that can be read: expected a .safetensors file, or a state dict or checkpoint "
        f"that torch.save has written."
    )
    problem.__cause__ = error
    return problem


def _read(file: Path) -> Iterator[tuple[str, Tensor]]:
    return _read_safetensors(file) if file.suffix == ".safetensors" else _tensors("", _load(file))


def _load(file: Path) -> Any:
    # Files of torch before 1.6 are no zip archives, and cannot be mapped.
    return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))


def _read_safetensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    with safe_open(file, framework="pt") as content:
        for name in content.keys():  # noqa: SIM118  (no mapping)
            yield name, content.get_tensor(name)


def _tensors(name: str, value: object) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _tensors(f"{name}.{key}" if name else str(key), inner)
