"""What the user gave on the command line and in config files: for messages, and to refuse what cannot be meant."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from jsonargparse import Namespace

from lightning_freeze.errors import ConfigurationError

#: The least values of the Trainer's numbers that it does not check itself.
_LEAST = {
    "accumulate_grad_batches": 1, "check_val_every_n_epoch": 1, "gradient_clip_val": 0, "limit_predict_batches": 0,
    "limit_test_batches": 0, "limit_train_batches": 0, "limit_val_batches": 0, "log_every_n_steps": 0, "max_epochs": -1,
    "max_steps": -1, "min_epochs": 0, "min_steps": 0, "num_nodes": 1, "num_sanity_val_steps": -1, "overfit_batches": 0,
    "reload_dataloaders_every_n_epochs": 0, "val_check_interval": 0,
}  # fmt: skip
_remembered: list[tuple[Namespace, Callable[[], Namespace]]] = []


def remember_options(config: Namespace, defaults: Callable[[], Namespace]) -> None:
    """Keep the config of the command under way, for messages about errors in it.

    Args:
        config: The options of the command.
        defaults: Returns their defaults; called only if there is an error.
    """
    _remembered[:] = [(config, defaults)]


def forget_options() -> None:
    """Forget the config of the command before."""
    _remembered.clear()


def given_options() -> dict[str, Any]:
    """Return the options that differ from their defaults, by name, as in ``{"trainer.strategy": "dpp"}``."""
    if not _remembered:
        return {}
    config, defaults = _remembered[0]
    usual = dict(_leaves(defaults(), ""))
    return {name: value for name, value in _leaves(config, "") if name not in usual or usual[name] != value}


def check_sections(config: Namespace) -> None:
    """Refuse a section that is no map of options.

    Args:
        config: The options of the command.

    Raises:
        ConfigurationError: For example for ``trainer: 3``.
    """
    for name in ("trainer", "model"):
        if name in config and not isinstance(config[name], Namespace):
            raise ConfigurationError(f"{name} is {config[name]!r}: expected a map of options, as in '{name}: {{...}}'.")


def refuse_out_of_range(config: Namespace) -> None:
    """Refuse numbers that Lightning takes although they cannot be meant.

    Args:
        config: The options of the command.

    Raises:
        ConfigurationError: Naming the option.
    """
    for name, least in _LEAST.items():
        value = config.get(f"trainer.{name}")
        if isinstance(value, int | float) and not isinstance(value, bool) and not value >= least:
            raise ConfigurationError(f"trainer.{name} is {value:g}: expected {least} or more.")


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Namespace):
        for key, item in vars(value).items():
            if not key.startswith("__") and key != "class_path":
                yield from _leaves(item, f"{name}.{key}" if name and key != "init_args" else (name or key))
    elif isinstance(value, list) and any(isinstance(item, Namespace) for item in value):
        for item in value:
            yield from _leaves(item, name)
    elif value is not None and not callable(value):
        yield name, value
