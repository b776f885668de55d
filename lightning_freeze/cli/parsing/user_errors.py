"""Which errors a user has caused, and what they are told: one message with the option, exit code 2.

A bug of this package, and an error in a user's own code, keep their tracebacks: those who can mend them need them.
"""

from __future__ import annotations

import dis
import errno
import os
import pickle
import re
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_freeze.cli.parsing.known_classes import find_class

_OURS = "lightning_freeze"
# Libraries that complain about what they are given, with an exception of their own or one of Python's.
_LIBRARIES = {
    "accelerate", "datasets", "huggingface_hub", "jsonargparse", "lightning", "lightning_fabric", "lightning_utilities",
    "pandas", "pyarrow", "pytorch_lightning", "safetensors", "sentencepiece", "tiktoken", "tokenizers", "torch",
    "torchmetrics", "transformers", "yaml",
}  # fmt: skip
# A config may name classes of any other package that is installed.
_INSTALLED_PARTS = {"site-packages", "dist-packages"}
_COMPLAINTS = (ImportError, MemoryError, RuntimeError, TypeError, ValueError, pickle.UnpicklingError)
# Errors of libraries that follow from reading a file that is not what its name says, wherever they are raised.
_UNREADABLE = ("ArrowInvalid", "ArrowNotImplementedError", "JSONDecodeError", "SafetensorError", "UnicodeDecodeError")
# Which option a part of the package or of Lightning works for.
_PLACES = (
    ("lightning_freeze.data", "data"),
    ("lightning_freeze.module", "model"),
    ("lightning.pytorch.trainer.connectors.checkpoint_connector", "ckpt_path"),
    ("torch.optim.lr_scheduler", "model.lr_scheduler"),
    ("torch.optim", "model.optimizer"),
    ("lightning.pytorch.trainer", "trainer"),
    ("lightning.pytorch.strategies", "trainer.strategy"),
    ("lightning.pytorch.loggers", "trainer.logger"),
    ("lightning.pytorch.callbacks", "trainer.callbacks"),
)
_LONGEST = 500
# What a parser says of each type that a value is not.
_UNSPECIFIC = ("Does not validate against", "Expected a", "Not a valid subclass", "a class path", "a dict with")


def message_for(error: BaseException, config: Mapping[str, Any] | None = None) -> str | None:
    """Return what to tell the user about an error that their input has caused; ``None`` for any other error.

    Args:
        error: What was raised.
        config: The options that were given, flat (``{"trainer.strategy": "dpp"}``), as far as they are known.
    """
    own = _raised_on_purpose_here(error)
    if own is not None:
        return str(own)
    if isinstance(error, OSError) and not _is_from_user_code(error):
        return _file_error(error, config or {})
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return f"There is not enough memory ({_first_line(error)}): expected a smaller data.batch_size or model."
    if isinstance(error, UnicodeDecodeError) and "jsonargparse" in _modules(error):
        return f"--config cannot be read as text: {error.reason} at byte {error.start}."
    if isinstance(error, MisconfigurationException) or _is_complaint(error):
        return _with_option(_first_line(error), error, config or {})
    return None


def _raised_on_purpose_here(error: BaseException | None) -> BaseException | None:
    """Find what this package raised on purpose. Parsers and libraries wrap it: look behind them."""
    while error is not None:
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        if isinstance(error, ValueError) and frames and _root(frames[-1]) == _OURS and _ends_with_raise(error):
            return error
        if isinstance(error, MisconfigurationException) and (not frames or _root(frames[-1]) == _OURS):
            return error
        error = error.__cause__ or error.__context__
    return None


def _is_complaint(error: BaseException) -> bool:
    """Whether a library refused what it was given."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    roots = [root for root in map(_root, frames) if root not in sys.stdlib_module_names]
    caller = roots[-1] if roots else ""
    if type(error).__name__ in _UNREADABLE:
        return caller in _LIBRARIES | {_OURS}
    if not frames or not _is_library([frame for frame in frames if _root(frame) not in sys.stdlib_module_names][-1:]):
        return False
    if "Error(s) in loading state_dict" in str(error) or isinstance(error, ArithmeticError):
        return True  # such as a period of 0, by which a scheduler divides
    is_library_error = type(error).__module__.partition(".")[0] in _LIBRARIES or type(error) is Exception
    return (isinstance(error, _COMPLAINTS) or is_library_error) and _ends_with_raise(error)


def _modules(error: BaseException) -> set[str]:
    return {_root(frame) for frame, _ in traceback.walk_tb(error.__traceback__)}


def _is_from_user_code(error: BaseException) -> bool:
    """Whether an exception was raised by a module that is neither of this package nor of a known library."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(frames) and not (
        _is_library(frames[-1:]) or _root(frames[-1]) in sys.stdlib_module_names or _root(frames[-1]) == _OURS
    )


def _is_library(frames: list[FrameType]) -> bool:
    """Whether the last frame is of a library: one that is known, or any other that is installed."""
    if not frames or _root(frames[-1]) == _OURS:
        return False
    return _root(frames[-1]) in _LIBRARIES or not _INSTALLED_PARTS.isdisjoint(Path(frames[-1].f_code.co_filename).parts)


def _ends_with_raise(error: BaseException) -> bool:
    """Whether the innermost frame executed ``raise``, and not something that failed."""
    entry = error.__traceback__
    if entry is None:
        return False
    while entry.tb_next is not None:
        entry = entry.tb_next
    code = entry.tb_frame.f_code.co_code
    return 0 <= entry.tb_lasti < len(code) and dis.opname[code[entry.tb_lasti]] in ("RAISE_VARARGS", "RERAISE")


def _root(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def _file_error(error: OSError, config: Mapping[str, Any]) -> str:
    if error.errno == errno.ENOSPC:
        return f"The disk is full: {error.filename or error}."
    if error.filename is None or error.strerror is None:
        return _with_option(_first_line(error), error, config)
    name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else str(error.filename)
    option = next((f" ({key})" for key, value in config.items() if _is_path(value, name)), "")
    return f"{name!r}{option} cannot be used: {error.strerror}."


def _is_address(value: object) -> bool:
    """Whether a value is a path or a URL, which a message may name without quotes."""
    return isinstance(value, str) and len(value) > 5 and re.search(r"[/:.]", value) is not None


def _is_path(value: object, name: str) -> bool:
    """Whether an option names a file that an error names, perhaps from another folder."""
    return isinstance(value, str | os.PathLike) and bool(str(value)) and os.path.abspath(value) == os.path.abspath(name)


def _with_option(text: str, error: BaseException, config: Mapping[str, Any]) -> str:
    """A library's message with the option that it is about, as far as that can be told."""
    names = [str(frame.f_globals.get("__name__", "")) for frame, _ in traceback.walk_tb(error.__traceback__)]
    place = next((option for name in reversed(names) for start, option in _PLACES if name.startswith(start)), None)
    if "loading state_dict" in text:
        return f"ckpt_path: {text}"
    if text.startswith("`Timer(duration="):
        return f"trainer.max_time: {text}"
    alone = re.search(r"Option '(\w+)' is not accepted", text)
    if alone is not None and find_class(alone[1]) is not None:
        form = f"{{class_path: {alone[1]}, init_args: {{...}}}}"
        return f"--config: {alone[1]} is a class, not an option: expected {form}."
    option = _option_named(text, config, place or "")
    if option is not None:
        return f"{option} is {_cut(repr(config[option]))}: {text}"
    return text if place is None else f"{place}: {text}"


def _option_named(text: str, config: Mapping[str, Any], place: str) -> str | None:
    """The option whose name or value a message contains; one whose value is quoted comes first.

    A bare number counts only for the options of the place where the error was raised.
    """

    def quoted(value: Any) -> bool:
        return (
            isinstance(value, str)
            and len(value) > 1
            and re.search(rf"['\"`]{re.escape(value)}['\"`]", text) is not None
        )

    def named(option: str) -> bool:
        return re.search(rf"\b{re.escape(option.rpartition('.')[2])}\b", text) is not None

    by_both = [option for option, value in config.items() if value is not None and named(option) and str(value) in text]
    by_value = [option for option, value in config.items() if quoted(value)]
    by_value += [option for option, value in config.items() if _is_address(value) and value in text]
    numbers = set(re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e-?\d+)?(?![\w])", text))
    by_number = [
        option
        for option, value in config.items()
        if option.startswith(place) and type(value) in (int, float) and str(value) in numbers
    ]
    by_name = [option for option, value in config.items() if value is not None and named(option)]
    return next(iter([*by_both, *by_value, *by_name, *(by_number if len(by_number) == 1 else [])]), None)


def _first_line(error: BaseException) -> str:
    """The first paragraph of an error's message, on one line; of what a parser tried, the reason that says most."""
    text = str(error).strip() or type(error).__name__
    return _cut(" ".join(_reason(text.split("\n\n")[0]).split()), _LONGEST)


def _reason(text: str) -> str:
    if not text.startswith("Does not validate against"):
        return text
    reasons = re.findall(r"^\s*- (.*?)(?=\n\s*(?:- |Given value)|\Z)", text, re.MULTILINE | re.DOTALL)
    useful = [reason for reason in reasons if not reason.startswith(_UNSPECIFIC)]
    return re.sub(r"^Problem with given class_path '([^']*)':", r"\1:", useful[0]) if useful else text


def _cut(text: str, longest: int = 120) -> str:
    return text if len(text) <= longest else text[: longest - 3] + "..."
