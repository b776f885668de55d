"""Optimizer states in a checkpoint: they are stored by position, so they fit only the groups they were saved with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lightning.pytorch import Trainer

from lightning_freeze.errors import ConfigurationError


def check_before_restoring(trainer: Trainer) -> Callable[[], object]:
    """Compare the groups of the optimizers with those of a checkpoint, right before it is restored.

    Other callbacks, such as ``BackboneFinetuning``, may rebuild the groups when the fit starts.

    Args:
        trainer: The running trainer.

    Returns:
        Undoes it.
    """
    strategy = trainer.strategy
    load = strategy.load_optimizer_state_dict

    def load_optimizer_state_dict(checkpoint: Mapping[str, Any]) -> None:
        states = checkpoint.get("optimizer_states", [])
        if all("param_groups" in state for state in states):  # some wrappers have a form of their own
            _check_groups(states, trainer.optimizers)
        load(checkpoint)

    strategy.load_optimizer_state_dict = load_optimizer_state_dict  # type: ignore[method-assign]
    return lambda: vars(strategy).pop("load_optimizer_state_dict", None)


def _check_groups(states: Iterable[Mapping[str, Any]], optimizers: Iterable[Any]) -> None:
    saved = [_sizes(state["param_groups"]) for state in states]
    now = [_sizes(optimizer.param_groups) for optimizer in optimizers]
    if saved != now:
        raise ConfigurationError(
            f"The optimizers in the checkpoint hold parameter groups of {' and '.join(saved)} parameters, those of "
            f"this run {' and '.join(now)}: it was saved with another optimizer, or by a version of this package that "
            f"made one group for each layer. Resume with what saved it, or begin a new run from its weights alone."
        )


def _sizes(groups: Iterable[Mapping[str, Any]]) -> str:
    return "+".join(str(len(group["params"])) for group in groups)
