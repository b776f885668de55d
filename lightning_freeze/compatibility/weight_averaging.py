"""Lightning's ``StochasticWeightAveraging`` with one learning rate per layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ConstantLR

from lightning_freeze.rates.layer_rates import LayerRates


def keep_layer_rates(averaging: StochasticWeightAveraging, rates: LayerRates) -> Callable[[], None]:
    """Let weight averaging drive the user's own parameter groups, so that each layer keeps its factor.

    It swaps the scheduler for one that brings every group of the optimizer to ``swa_lrs``. Among the groups of the
    layers, a single rate would make all layers equal, and a list, with one rate for each of the user's groups, fails.

    Args:
        averaging: The callback.
        rates: The rates of the layers; looked at when averaging begins, by when they are split.

    Returns:
        What undoes it.
    """
    begin = averaging.on_train_epoch_start
    notes_steps = False

    def on_train_epoch_start(trainer: Trainer, *args: Any) -> None:
        nonlocal notes_steps
        base = rates.base_of(trainer.optimizers[0])
        if base is None:
            begin(trainer, *args)
            return
        if not notes_steps:
            # Torch notes on the optimizer's own step, when the first scheduler is made for it, that steps are taken.
            # A stand-in takes none. This scheduler changes no rate, and is not kept.
            ConstantLR(trainer.optimizers[0], factor=1.0)
            notes_steps = True
        begin(_WithOptimizer(trainer, base), *args)  # type: ignore[arg-type]

    setattr(averaging, "on_train_epoch_start", on_train_epoch_start)  # noqa: B010  (mypy knows it for a method)

    def undo() -> None:
        vars(averaging).pop("on_train_epoch_start", None)

    return undo


class _WithOptimizer:
    """The trainer in all respects but its optimizer."""

    def __init__(self, trainer: Trainer, optimizer: Optimizer) -> None:
        vars(self).update(_trainer=trainer, optimizers=[optimizer])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trainer, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._trainer, name, value)
