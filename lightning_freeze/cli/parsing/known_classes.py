"""The classes that a config may name by their short names, and the nearest one to a misspelt name."""

from __future__ import annotations

import importlib
import traceback
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.cli import ReduceLROnPlateau
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.strategies import Strategy

from lightning_freeze.errors import suggest
from lightning_freeze.schedule.triggers import Trigger
from lightning_freeze.strategies.dynamic.policies import Policy

# The base class by the last part of an option's name.
_BASES: dict[str, tuple[type, ...]] = {
    "callbacks": (Callback,),
    "data": (LightningDataModule,),
    "logger": (Logger,),
    "lr_scheduler": (torch.optim.lr_scheduler.LRScheduler, ReduceLROnPlateau),
    "model": (LightningModule,),
    "optimizer": (torch.optim.Optimizer,),
    "policy": (Policy,),
    "profiler": (Profiler,),
    "strategy": (Strategy,),
    "trigger": (Trigger,),
    "triggers": (Trigger,),
    "until": (Trigger,),
}


def find_class(name: object) -> type | None:
    """Return the class that a ``class_path`` names, ``None`` if there is none.

    Args:
        name: A short name (``"LayerFreezing"``) or an import path.
    """
    if not isinstance(name, str):
        return None
    if "." not in name:
        return _by_name(base for bases in _BASES.values() for base in bases).get(name)
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except Exception:  # an error at import is reported when the class is used
        return None
    return found if isinstance(found, type) else None


def import_failure(name: str) -> str | None:
    """Return why the module of a class cannot be imported; ``None`` if it can be, or if there is no such module.

    Args:
        name: The import path of the class.
    """
    module = name.rpartition(".")[0]
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        return None if f"{module}.".startswith(f"{error.name}.") else _described(error)
    except Exception as error:
        return _described(error)
    return None


def takes_class(option: str) -> bool:
    """Whether a class may be given for an option, by its last part.

    Args:
        option: The option, such as ``trainer.callbacks``.
    """
    return _last_part(option) in _BASES


def nearest_class(name: str, option: str) -> str:
    """Return `` Did you mean 'LayerFreezing'?`` for a misspelt class name, or an empty string.

    Args:
        name: What the user wrote.
        option: The option that it was given for; its last part says which kind of class is meant.
    """
    bases = _BASES.get(_last_part(option), ())
    return suggest(name.rpartition(".")[2].partition("(")[0], sorted(_by_name(bases)))


def _last_part(option: str) -> str:
    return option.rpartition(".")[2].rstrip("+")


def _described(error: Exception) -> str:
    """An error at import, and the line that raised it."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename not in (__file__, importlib.__file__)]
    own = [frame for frame in frames if not frame.filename.startswith("<frozen")]
    text = " ".join(str(error).split())
    # A syntax error names its line itself.
    place = f" ({own[-1].filename}, line {own[-1].lineno})" if own and not isinstance(error, SyntaxError) else ""
    return f"{type(error).__name__}{f': {text}' if text else ''}{place}"


def _by_name(bases: Any) -> dict[str, type]:
    """All subclasses by name, without private ones. Of two with one name, the package's own comes first."""
    found: dict[str, type] = {}
    left = list(bases)
    while left:
        cls = left.pop()
        left += cls.__subclasses__()
        name = cls.__name__
        if not name.startswith("_") and (name not in found or cls.__module__.startswith("lightning_freeze.")):
            found[name] = cls
    return found
