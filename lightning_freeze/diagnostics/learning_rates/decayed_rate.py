"""A scheduler that has decayed to nothing by the time a layer unfreezes: the layer will hardly train."""

from __future__ import annotations

from collections.abc import Sequence

from torch.nn import Parameter

from lightning_freeze.diagnostics.learning_rates.rates_ahead import can_look_ahead, rate_of, rates_ahead
from lightning_freeze.layers.wording import spans
from lightning_freeze.run_warnings.record import warn_in_run
from lightning_freeze.session.observer import Observer, PhaseChange
from lightning_freeze.session.session import Session

#: Share of the scheduler's peak below which a rate is next to nothing.
NEXT_TO_NOTHING = 0.01


def has_decayed(peak: float, ahead: Sequence[float]) -> bool:
    """Whether no rate that is still to come reaches 1% of the highest one so far.

    Args:
        peak: The highest rate so far.
        ahead: The present rate and those of the rest of the run.
    """
    return peak > 0 and max(ahead) < NEXT_TO_NOTHING * peak


class DecayedRate(Observer):
    """Compares the rates that newly unfrozen layers will have with the scheduler's peak, and warns once.

    Only where one optimizer steps under automatic optimization and the length of the run is known; otherwise the
    rates of the rest of the run cannot be known.

    Args:
        session: The running fit.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._is_running = False
        self._peaks: list[float] = []
        self._trained: set[Parameter] = set()

    def start_training(self) -> None:  # noqa: D102
        self._is_running = True  # finders try rates out before
        self._trained = self._trainable()

    def end_batch(self, batch_idx: int) -> None:  # noqa: D102
        if self._is_running and can_look_ahead(self._session.trainer):
            groups = self._session.trainer.optimizers[0].param_groups
            rates = [max(rate_of(group), rate_of(group, "initial_lr"), rate_of(group, "max_lr")) for group in groups]
            known = [*self._peaks, *[0.0] * (len(rates) - len(self._peaks))]
            self._peaks = [max(pair) for pair in zip(rates, known, strict=False)]

    def change_phase(self, change: PhaseChange) -> None:  # noqa: D102
        trainable = self._trainable()
        fresh, self._trained = trainable - self._trained, trainable
        if not fresh or not self._peaks or not can_look_ahead(self._session.trainer):
            return
        groups = self._session.trainer.optimizers[0].param_groups
        affected = [i for i, g in enumerate(groups[: len(self._peaks)]) if fresh & set(g["params"])]
        low = [i for i in affected if has_decayed(self._peaks[i], [rate_of(groups[i])])]
        if not low or len(low) < len(affected):
            return
        ahead = rates_ahead(self._session.trainer)
        if ahead is not None and all(has_decayed(self._peaks[i], [now[i] for now in ahead]) for i in low):
            self._warn(change, fresh, rate_of(groups[low[0]]), self._peaks[low[0]])

    def _warn(self, change: PhaseChange, fresh: set[Parameter], now: float, peak: float) -> None:
        if not self._session.is_first("decayed rate"):
            return
        stack = self._session.stack
        names = [layer.name for layer in stack if fresh & set(layer.parameters())]
        step = self._session.trainer.global_step
        warn_in_run(
            self._session.trainer,
            f"Phase {change.phase + 1} of {len(change.plan)} unfreezes {spans(names, stack.names)} at step {step}, but "
            f"the scheduler has decayed the learning rate to {now:.3g}, less than 1% of its peak ({peak:.3g}), and "
            f"does not raise it again: they will hardly train. Unfreeze earlier, or use a scheduler that decays later.",
        )

    def _trainable(self) -> set[Parameter]:
        return {parameter for parameter in self._session.module.parameters() if parameter.requires_grad}
