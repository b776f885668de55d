"""Begins the history of a fit, or continues that of the run that it resumes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from lightning.pytorch import LightningModule, Trainer

from lightning_freeze.callbacks.layer_callback import Groups
from lightning_freeze.errors import ConfigurationError
from lightning_freeze.layers import LayerStack
from lightning_freeze.run_report.history.history import History
from lightning_freeze.run_report.history.records import Event
from lightning_freeze.run_report.measures.distances import StartingWeights
from lightning_freeze.run_report.measures.metrics import watched_metrics
from lightning_freeze.run_report.measures.run_layers import RunLayers
from lightning_freeze.run_report.recorder import Recorder
from lightning_freeze.session.moments import Moments


class Options(Protocol):
    """The options of a report; see :class:`~lightning_freeze.FreezeReport`."""

    log_scalars: bool
    every_n_steps: int | None
    monitor: str | None
    mode: Any


def stack_from(module: LightningModule, groups: Groups) -> LayerStack:
    """The layers that an explicit map defines.

    Args:
        module: The module that is being fitted.
        groups: The map.

    Raises:
        ConfigurationError: If it does not fit the module.
    """
    try:
        return LayerStack(module, groups=groups)
    except ValueError as error:
        raise ConfigurationError(f"FreezeReport: {error}") from error


def stack_of_run(module: LightningModule) -> LayerStack:
    """The layers as the other callbacks see them, or as they are found without any."""
    moments = Moments.of(module)
    return LayerStack(module) if moments is None else moments.session.stack


def start_recorder(
    options: Options, trainer: Trainer, module: LightningModule, stack: LayerStack, state: Mapping[str, Any]
) -> Recorder:
    """Make what fills the history of a fit.

    Args:
        options: The options of the report.
        trainer: The running trainer, about to train.
        module: The module that is being fitted.
        stack: Its layers.
        state: The state of the run that is continued; empty for a new one.
    """
    layers = RunLayers(stack)
    taken = trainer.global_step
    history = _continued(state, layers)
    start = StartingWeights(layers)
    if history is None:
        history = History(layers.names, layers.sizes, taken)
        if state:
            history.add_event(Event(taken, "the history in the checkpoint cannot be continued, so it begins here"))
    else:
        start.load_state_dict(state["starting_weights"])
        history.add_event(Event(history.end, "training was resumed"))
    start.keep()
    watched = watched_metrics(trainer, options.monitor, options.mode)
    return Recorder(trainer, module, layers, history, start, options.every_n_steps, watched, options.log_scalars)


def _continued(state: Mapping[str, Any], layers: RunLayers) -> History | None:
    try:
        history = History.from_state_dict(state["history"])
    except (KeyError, TypeError, ValueError):  # none, or of another version of this package
        return None
    return history if (history.layers, history.sizes) == (layers.names, layers.sizes) else None
