"""Logs the learning rate of each layer, since ``LearningRateMonitor`` shows the user's own parameter groups."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from lightning.pytorch import Trainer
from torch.nn import Parameter
from torch.optim import Optimizer

from lightning_freeze.layers import LayerStack
from lightning_freeze.rates.optimizer_rates import OptimizerRates
from lightning_freeze.session.observer import Observer
from lightning_freeze.session.session import Session


class RateLog(Observer):
    """Logs to every logger of the trainer, under ``lr-<optimizer>/<layer>``.

    Args:
        session: The running fit.
        stacks: The layers to log.
    """

    def __init__(self, session: Session, stacks: Sequence[LayerStack]) -> None:
        self._session = session
        self._stacks = stacks

    def start_batch(self) -> None:  # noqa: D102
        # With manual optimization, the module may step the optimizer without Lightning, and then no hook runs.
        if not self._session.module.automatic_optimization:
            self._log()

    def before_step(self, optimizer: Optimizer) -> None:  # noqa: D102
        # The user's hooks may have set other rates since the batch began.
        if self._session.module.automatic_optimization:
            self._log()

    def _log(self) -> None:
        trainer = self._session.trainer
        if not trainer.loggers or not _should_log(trainer):
            return
        layers = {layer.name: layer.parameters() for stack in self._stacks for layer in stack}
        rates = layer_rates(self._session.rates, trainer.optimizers, layers)
        for logger in trainer.loggers:
            logger.log_metrics({name: values[-1] for name, values in rates.items()}, step=_step(trainer))


def layer_rates(
    rates: OptimizerRates, optimizers: Sequence[Optimizer], layers: Mapping[str, Iterable[Parameter]]
) -> dict[str, list[float]]:
    """The different rates within each layer now, in ascending order, under names such as ``lr-AdamW/head``.

    The name of the optimizer is that of ``LearningRateMonitor``: ``lr-AdamW``, and ``lr-AdamW-1`` for a second one.

    Args:
        rates: The rates of the run.
        optimizers: Its optimizers.
        layers: The parameters of each layer, by its name.
    """
    found: dict[str, list[float]] = {}
    names: list[str] = []
    for optimizer in optimizers:
        name = f"lr-{type(optimizer).__name__}"
        number = names.count(name)
        names.append(name)
        rate_of = rates.rates_of(optimizer)
        for layer, parameters in layers.items():
            values = sorted({rate_of[parameter] for parameter in parameters if parameter in rate_of})
            if values:
                found[f"{name}-{number}/{layer}" if number else f"{name}/{layer}"] = values
    return found


def _should_log(trainer: Trainer) -> bool:
    # As LearningRateMonitor has it: there is no public name, and `log` would round the rates to single precision.
    return trainer._logger_connector.should_update_logs


def _step(trainer: Trainer) -> int:
    # The step under which Lightning logs the metrics of this batch, also with several optimizers.
    return trainer.fit_loop.epoch_loop._batches_that_stepped
