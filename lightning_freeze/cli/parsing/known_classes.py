"""The classes that a config may name by their short names, and the nearest one to a misspelt name."""

from __future__ import annotations

import importlib
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


def nearest_class(name: str, option: str) -> str:
    """Return `` Did you mean 'LayerFreezing'?`` for a misspelt class name, or an empty string.

    Args:
        name: What the user wrote.
        option: The option that it was given for; its last part says which kind of class is meant.
    """
    bases = _BASES.get(option.rpartition(".")[2].rstrip("+"), ())
    return suggest(name.rpartition(".")[2].partition("(")[0], sorted(_by_name(bases)))


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
