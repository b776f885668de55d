"""Classes that exist twice, once in each of Lightning's import names.

A project's modules, Trainer, callbacks and strategies come from the namespace that it imports. This package imports
``lightning.pytorch``, which always installs ``pytorch_lightning`` beside it.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TypeVar

import lightning.pytorch
from lightning.pytorch import LightningModule
from lightning_utilities.core import rank_zero
from lightning_utilities.core.overrides import is_overridden

_COPIES = {"lightning.pytorch": "pytorch_lightning", "lightning.fabric": "lightning_fabric"}

T = TypeVar("T")

if TYPE_CHECKING:
    from lightning.pytorch import Callback as Callback

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


def either(*classes: type[T]) -> tuple[type[T], ...]:
    """The classes and their copies in the other namespace, for ``isinstance``.

    A copy counts once the project has imported its module: before that, nothing can be an instance of it. Call this at
    each check, because the project may import its namespace after this package.

    Args:
        classes: Classes of ``lightning.pytorch``.
    """
    return (*classes, *(copy for cls in classes if (copy := _copy_of(cls)) is not None))


def overrides(name: str, module: LightningModule) -> bool:
    """Whether a LightningModule of either namespace overrides a method.

    Args:
        name: Name of the method.
        module: The module.
    """
    parents = either(LightningModule)
    parent = next(cls for cls in type(module).__mro__ if cls in parents)
    return is_overridden(name, module, parent)


def _copy_of(cls: type[T]) -> type[T] | None:
    for own, other in _COPIES.items():
        if cls.__module__ == own or cls.__module__.startswith(f"{own}."):
            module = sys.modules.get(other + cls.__module__.removeprefix(own))
            copy: type[T] | None = getattr(module, cls.__name__, None)
            return copy
    return None
