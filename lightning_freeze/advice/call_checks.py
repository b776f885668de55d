"""The arguments of ``advise``, checked before anything is measured."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, Trainer

from lightning_freeze.arguments.annotations import described, fits, reading_of
from lightning_freeze.errors import ConfigurationError, suggest
from lightning_freeze.namespaces import either

_OWN = ("callbacks", "monitor", "mode", "budget", "seeds", "examples", "tolerance", "folder", "verbose")
#: Arguments of the Trainer that are about where a run is written and shown, or on how many devices it runs.
_NOT_OF_A_FIT = frozenset(
    {
        *("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary", "profiler", "barebones"),
        *("devices", "num_nodes", "strategy", "fast_dev_run", "log_every_n_steps", "default_root_dir"),
    }
)
#: What a plan and a short run compute with, before any Trainer has checked it.
_NUMBERS: dict[str, Any] = {
    **dict.fromkeys(("max_epochs", "min_epochs", "max_steps", "min_steps", "check_val_every_n_epoch"), int | None),
    "accumulate_grad_batches": int,
    **dict.fromkeys(("limit_train_batches", "limit_val_batches"), int | float | None),
}


def check_numbers(budget: float, seeds: int, examples: int, tolerance: float) -> None:
    """Check the numbers that decide how much is trained.

    Args:
        budget: See :func:`~lightning_freeze.advise`.
        seeds: See :func:`~lightning_freeze.advise`.
        examples: See :func:`~lightning_freeze.advise`.
        tolerance: See :func:`~lightning_freeze.advise`.

    Raises:
        ConfigurationError: If one is no number, or out of range.
    """
    if not isinstance(budget, int | float) or isinstance(budget, bool) or not 0 < budget < math.inf:
        raise ConfigurationError(f"budget={budget!r}: expected a number of runs above 0, such as 4.")
    for name, value, least in (("seeds", seeds, 1), ("examples", examples, 10)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigurationError(f"{name}={value!r}: expected a whole number, {least} or more.")
    if not isinstance(tolerance, int | float) or isinstance(tolerance, bool) or not 0 <= tolerance < math.inf:
        raise ConfigurationError(f"tolerance={tolerance!r}: expected a number of 0 or more, in terms of the metric.")


def check_objects(datamodule: Any, callbacks: Any, monitor: Any, mode: Any, folder: Any) -> None:
    """Check what is no number.

    Args:
        datamodule: See :func:`~lightning_freeze.advise`.
        callbacks: See :func:`~lightning_freeze.advise`.
        monitor: See :func:`~lightning_freeze.advise`.
        mode: See :func:`~lightning_freeze.advise`.
        folder: See :func:`~lightning_freeze.advise`.

    Raises:
        ConfigurationError: If one is of another kind.
    """
    if not isinstance(datamodule, either(LightningDataModule)):
        raise ConfigurationError(f"datamodule is {_wrong_data(datamodule)}")
    if isinstance(callbacks, either(Callback)):
        raise ConfigurationError(
            f"callbacks={callbacks!r}: expected a list of callbacks. Did you mean [{callbacks!r}]?"
        )
    if not isinstance(callbacks, Sequence) or isinstance(callbacks, str):
        raise ConfigurationError(f"callbacks={callbacks!r}: expected a list of callbacks; leave it out for none.")
    for callback in callbacks:
        if not isinstance(callback, either(Callback)):
            name = callback.__name__ if isinstance(callback, type) else str(callback)
            nearest = f" Did you mean {name}()?" if name.isidentifier() and name != "None" else ""
            raise ConfigurationError(f"callbacks holds {callback!r}: expected callbacks, such as LISA().{nearest}")
    if monitor is not None and (not isinstance(monitor, str) or not monitor.strip()):
        raise ConfigurationError(f"monitor={monitor!r}: expected the name of a metric, such as 'val_loss', or None.")
    if mode not in (None, "min", "max"):
        raise ConfigurationError(f"mode={mode!r}: expected 'min' or 'max'.{suggest(mode, ('min', 'max'))}")
    if folder is not None and not isinstance(folder, str | Path):
        raise ConfigurationError(f"folder={folder!r}: expected the path of a folder, or None to keep nothing.")


def trainer_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the Trainer of each fit.

    Args:
        given: The arguments of the Trainer that the user has given.

    Raises:
        ConfigurationError: If a name is unknown, a number is none, or the length of the run is missing.
    """
    known = inspect.signature(Trainer.__init__).parameters
    for name, value in given.items():
        if name not in known:
            raise ConfigurationError(f"{name} is no argument of advise or of Trainer.{suggest(name, [*known, *_OWN])}")
        if name in _NUMBERS and not fits(value, _NUMBERS[name]):
            read = reading_of(value, _NUMBERS[name]) if isinstance(value, str) else None
            nearest = "" if read is None else f" Did you mean {read!r}?"
            raise ConfigurationError(f"{name}={value!r}: expected {described(_NUMBERS[name])}.{nearest}")
    lengths = [given.get("max_epochs"), None if given.get("max_steps", -1) == -1 else given["max_steps"]]
    if all(length is None for length in lengths):
        raise ConfigurationError("advise needs the length of the run: expected max_epochs or max_steps.")
    kept = {name: value for name, value in given.items() if name not in _NOT_OF_A_FIT}
    return {"num_sanity_val_steps": 0, **kept, "devices": 1}


def _wrong_data(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__}: expected a LightningDataModule. Did you mean {value.__name__}(...)?"
    if value is None:
        return "None: expected a LightningDataModule, with the training and validation batches."
    return (
        f"a {type(value).__name__}: expected a LightningDataModule. One of data sets is made by "
        f"LightningDataModule.from_datasets(train, val, batch_size=...)."
    )
