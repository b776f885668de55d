"""Classes that exist twice, once in each of Lightning's import names.

A project's modules, Trainer, callbacks and strategies come from the namespace that it imports. This package imports
``lightning.pytorch``, which always installs ``pytorch_lightning`` beside it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from inspect import getattr_static, isfunction
from typing import TYPE_CHECKING, Any, TypeVar

import lightning.pytorch
from lightning_utilities.core import rank_zero
from lightning_utilities.core.overrides import is_overridden
from torch import nn

_COPIES = {"lightning.pytorch": "pytorch_lightning", "lightning.fabric": "lightning_fabric"}

T = TypeVar("T")


class _MethodOfItsTrainer:
    """A method that both namespaces define: bound is the one of the namespace that the object's Trainer comes from.

    Lightning compares a hook with that of its own base class to see whether somebody has overridden it.
    """

    def __init__(self, own: Callable[..., Any], other: Callable[..., Any], other_trainer: type) -> None:
        self._own, self._other, self._other_trainer = own, other, other_trainer

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        if instance is None:
            return self._own
        values = vars(instance)
        trainer = values.get("_trainer", values.get("trainer"))
        method = self._other if isinstance(trainer, self._other_trainer) else self._own
        return method.__get__(instance, owner)


def _asks_its_trainer(cls: type[T]) -> type[T]:
    """Give a class with a base in each namespace the public methods of both."""
    own, other = cls.__bases__
    other_trainer = sys.modules[_COPIES["lightning.pytorch"]].Trainer
    for name in dir(other):
        method = getattr_static(other, name)
        if isfunction(method) and not name.startswith("_") and not hasattr(nn.Module, name):
            setattr(cls, name, _MethodOfItsTrainer(getattr_static(own, name, method), method, other_trainer))
    return cls


if TYPE_CHECKING:
    from lightning.pytorch import Callback as Callback
    from lightning.pytorch import LightningDataModule as LightningDataModule
    from lightning.pytorch import LightningModule as LightningModule

    class Misconfiguration(Exception):
        """``MisconfigurationException`` of the other namespace."""

else:
    # Each namespace makes its logger that of Lightning's messages when it is imported: the user's stays.
    _logger = rank_zero.log
    import pytorch_lightning
    from lightning_fabric.utilities import exceptions

    rank_zero.log = _logger

    Misconfiguration = exceptions.MisconfigurationException

    class Callback(lightning.pytorch.Callback, pytorch_lightning.Callback):
        """A callback for Trainers of both namespaces.

        A Trainer calls whatever is in its list. It asks for a callback of its own namespace where a single one is given
        instead of a list, and in the types of a ``LightningCLI``.
        """

    @_asks_its_trainer
    class LightningModule(lightning.pytorch.LightningModule, pytorch_lightning.LightningModule):
        """A module for Trainers of both namespaces."""

        @property
        def trainer(self):
            """The Trainer that runs this module; children of both namespaces are given it too."""
            return super().trainer

        @trainer.setter
        def trainer(self, trainer):
            lightning.pytorch.LightningModule.trainer.fset(self, trainer)
            pytorch_lightning.LightningModule.trainer.fset(self, trainer)

    @_asks_its_trainer
    class LightningDataModule(lightning.pytorch.LightningDataModule, pytorch_lightning.LightningDataModule):
        """A data module for Trainers of both namespaces."""


def either(*classes: type[T]) -> tuple[type[T], ...]:
    """The classes and their copies in the other namespace, for ``isinstance``.

    A copy counts once the project has imported its module: before that, nothing can be an instance of it. Call this at
    each check, because the project may import its namespace after this package.

    Args:
        classes: Classes of ``lightning.pytorch``.
    """
    return (*classes, *(copy for cls in classes if (copy := _copy_of(cls)) is not None))


def overrides(name: str, module: lightning.pytorch.LightningModule) -> bool:
    """Whether a LightningModule of either namespace overrides a method.

    Args:
        name: Name of the method.
        module: The module.
    """
    parents = [cls for cls in either(lightning.pytorch.LightningModule) if isinstance(module, cls)]
    return all(is_overridden(name, module, parent) for parent in parents)


def _copy_of(cls: type[T]) -> type[T] | None:
    for own, other in _COPIES.items():
        if cls.__module__ == own or cls.__module__.startswith(f"{own}."):
            module = sys.modules.get(other + cls.__module__.removeprefix(own))
            copy: type[T] | None = getattr(module, cls.__name__, None)
            return copy
    return None
