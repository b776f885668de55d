"""When a phase ends: triggers that count epochs, optimizer steps or validations without improvement.

A trigger is an immutable description. What it has seen so far lives in a small plain ``dict`` that the schedule carries
(and a checkpoint stores), so that every method here is a pure function of the description, that state and the clock.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from lightning_freeze.arguments import check_arguments
from lightning_freeze.errors import ConfigurationError

State = dict[str, Any]


class Clock(NamedTuple):
    """The position in a run: the current epoch and the number of optimizer steps, as Lightning counts them."""

    epoch: int
    step: int


class Pace(NamedTuple):
    """The pace of a run in training batches, to predict when a trigger can fire.

    ``batches_per_epoch`` and ``batches_per_validation`` are the distances from one to the next; ``batches_per_step``
    is the number of batches whose gradients are accumulated.
    """

    batches_per_epoch: int
    batches_per_validation: int
    batches_per_step: int = 1


class Trigger(ABC):
    """Decides when the running phase ends; all triggers count from the start of their phase.

    Combine triggers with ``|``: the phase ends as soon as any of them fires, so that
    ``EpochTrigger(5) | PlateauTrigger("val_loss")`` means "on a plateau, after five epochs at the latest".
    """

    @abstractmethod
    def start(self, clock: Clock) -> State:
        """State at the first training batch of the phase."""

    @abstractmethod
    def fired(self, state: Mapping[str, Any], clock: Clock) -> bool:
        """Whether the phase is over, asked before each training batch."""

    @abstractmethod
    def earliest(self, batch: int, pace: Pace) -> int:
        """Training batch, counted over the whole run, before which a phase that begins at ``batch`` cannot end."""

    def observe(self, state: State, metrics: Mapping[str, float]) -> State:
        """State after one more validation; ``metrics`` holds a value for each of :attr:`monitors`."""
        return state

    def reason(self, state: Mapping[str, Any], clock: Clock) -> str:
        """Why the phase is over, in words; asked once the trigger has fired."""
        return f"{self} had fired"

    @property
    def monitors(self) -> tuple[tuple[str, Literal["min", "max"]], ...]:
        """The ``(metric name, mode)`` pairs that this trigger watches."""
        return ()

    def __or__(self, other: Trigger) -> AnyTrigger:
        if not isinstance(other, Trigger):
            return NotImplemented
        return AnyTrigger([self, other])

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash(repr(self))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in vars(self).items())})"


def _positive(owner: str, n: int, unit: str) -> int:
    if n < 1:
        raise ConfigurationError(f"{owner}(n={n!r}): expected a whole number of {unit}, 1 or more.")
    return n


def _counted(number: int, unit: str) -> str:
    return f"{number} {unit}{'' if number == 1 else 's'}"


class EpochTrigger(Trigger):
    """Ends a phase after ``n`` epochs.

    The epoch in which a phase begins counts as its first, also when the phase begins in mid-epoch.

    Args:
        n: Number of epochs that the phase lasts, 1 or more.

    Raises:
        ConfigurationError: If ``n`` is not a positive whole number.
    """

    def __init__(self, n: int) -> None:
        check_arguments(EpochTrigger, locals())
        self.n = _positive("EpochTrigger", n, "epochs")

    def start(self, clock: Clock) -> State:  # noqa: D102
        return {"epoch": clock.epoch}

    def fired(self, state: Mapping[str, Any], clock: Clock) -> bool:  # noqa: D102
        return clock.epoch - int(state["epoch"]) >= self.n

    def earliest(self, batch: int, pace: Pace) -> int:  # noqa: D102
        return (batch // pace.batches_per_epoch + self.n) * pace.batches_per_epoch

    def reason(self, state: Mapping[str, Any], clock: Clock) -> str:  # noqa: D102
        return f"{_counted(clock.epoch - int(state['epoch']), 'epoch')} had passed"

    def __repr__(self) -> str:
        return f"EpochTrigger({self.n})"


class StepTrigger(Trigger):
    """Ends a phase after ``n`` optimizer steps (not batches: gradient accumulation makes fewer steps than batches).

    Args:
        n: Number of optimizer steps that the phase lasts, 1 or more, as ``Trainer.global_step`` counts them (with
            several optimizers each of them counts).

    Raises:
        ConfigurationError: If ``n`` is not a positive whole number.
    """

    def __init__(self, n: int) -> None:
        check_arguments(StepTrigger, locals())
        self.n = _positive("StepTrigger", n, "optimizer steps")

    def start(self, clock: Clock) -> State:  # noqa: D102
        return {"step": clock.step}

    def fired(self, state: Mapping[str, Any], clock: Clock) -> bool:  # noqa: D102
        return clock.step - int(state["step"]) >= self.n

    def earliest(self, batch: int, pace: Pace) -> int:  # noqa: D102
        per_epoch = -(-pace.batches_per_epoch // pace.batches_per_step)  # an epoch's last step may have fewer batches
        epoch, within = divmod(batch, pace.batches_per_epoch)
        epoch, steps = divmod(epoch * per_epoch + within // pace.batches_per_step + self.n, per_epoch)
        return epoch * pace.batches_per_epoch + steps * pace.batches_per_step

    def reason(self, state: Mapping[str, Any], clock: Clock) -> str:  # noqa: D102
        return f"{_counted(clock.step - int(state['step']), 'optimizer step')} had passed"

    def __repr__(self) -> str:
        return f"StepTrigger({self.n})"


class PlateauTrigger(Trigger):
    """Ends a phase once a monitored metric has stopped improving.

    The first validation of a phase sets the best value. The phase ends once ``patience + 1`` validations in a row have
    not improved on the best one. The sanity check does not count. A value that is NaN or infinite is never an
    improvement and never becomes the best one.

    Args:
        monitor: Name of a metric that the module logs, such as ``"val_loss"``.
        mode: ``"min"`` if lower is better, ``"max"`` if higher is better.
        patience: How many validations in a row without improvement are tolerated, 0 or more.
        min_delta: By how much a value must beat the best one to count as an improvement, 0 or more, in the metric's
            own unit.

    Raises:
        ConfigurationError: If an argument is out of range.
    """

    def __init__(
        self, monitor: str, mode: Literal["min", "max"] = "min", patience: int = 2, min_delta: float = 0.0
    ) -> None:
        check_arguments(PlateauTrigger, locals())
        if not monitor:
            raise ConfigurationError(f"PlateauTrigger(monitor={monitor!r}): expected the name of a logged metric.")
        if patience < 0:
            raise ConfigurationError(
                f"PlateauTrigger(patience={patience!r}): expected a whole number of validations, 0 or more."
            )
        if not (math.isfinite(min_delta) and min_delta >= 0):
            raise ConfigurationError(f"PlateauTrigger(min_delta={min_delta!r}): expected a finite number, 0 or more.")
        self.monitor = monitor
        self.mode: Literal["min", "max"] = mode
        self.patience = patience
        self.min_delta = min_delta

    def start(self, clock: Clock) -> State:  # noqa: D102
        return {"best": None, "bad": 0}

    def fired(self, state: Mapping[str, Any], clock: Clock) -> bool:  # noqa: D102
        return int(state["bad"]) > self.patience

    def observe(self, state: State, metrics: Mapping[str, float]) -> State:  # noqa: D102
        value = metrics[self.monitor]
        if improves(value, state["best"], self.mode, self.min_delta):
            return {"best": value, "bad": 0}
        return {"best": state["best"], "bad": state["bad"] + 1}

    def earliest(self, batch: int, pace: Pace) -> int:  # noqa: D102
        return (batch // pace.batches_per_validation + self.patience + 2) * pace.batches_per_validation

    def reason(self, state: Mapping[str, Any], clock: Clock) -> str:  # noqa: D102
        best = "" if state["best"] is None else f" on {state['best']:.4g}"
        return f"{self.monitor} had not improved{best} for {_counted(int(state['bad']), 'validation')}"

    @property
    def monitors(self) -> tuple[tuple[str, Literal["min", "max"]], ...]:  # noqa: D102
        return ((self.monitor, self.mode),)


class AnyTrigger(Trigger):
    """Ends a phase as soon as one of several triggers fires; ``a | b`` makes one.

    Args:
        triggers: The triggers to combine, at least one.

    Raises:
        ConfigurationError: If there is no trigger, or something else among them.
    """

    def __init__(self, triggers: Sequence[Trigger]) -> None:
        if isinstance(triggers, Trigger) or not isinstance(triggers, Sequence):
            raise ConfigurationError(f"AnyTrigger(triggers={triggers!r}): expected a list of triggers.")
        if not triggers:
            raise ConfigurationError("AnyTrigger(triggers=[]): expected at least one trigger.")
        for trigger in triggers:
            if not isinstance(trigger, Trigger):
                raise ConfigurationError(f"AnyTrigger: {trigger!r} is not a trigger, such as EpochTrigger(1).")
        self.triggers: tuple[Trigger, ...] = tuple(
            part
            for trigger in triggers
            for part in (trigger.triggers if isinstance(trigger, AnyTrigger) else [trigger])
        )

    def start(self, clock: Clock) -> State:  # noqa: D102
        return {"any": [trigger.start(clock) for trigger in self.triggers]}

    def fired(self, state: Mapping[str, Any], clock: Clock) -> bool:  # noqa: D102
        return any(t.fired(s, clock) for t, s in zip(self.triggers, state["any"], strict=True))

    def observe(self, state: State, metrics: Mapping[str, float]) -> State:  # noqa: D102
        return {"any": [t.observe(s, metrics) for t, s in zip(self.triggers, state["any"], strict=True)]}

    def earliest(self, batch: int, pace: Pace) -> int:  # noqa: D102
        return min(trigger.earliest(batch, pace) for trigger in self.triggers)

    def reason(self, state: Mapping[str, Any], clock: Clock) -> str:  # noqa: D102
        each = zip(self.triggers, state["any"], strict=True)
        return " and ".join(trigger.reason(s, clock) for trigger, s in each if trigger.fired(s, clock))

    @property
    def monitors(self) -> tuple[tuple[str, Literal["min", "max"]], ...]:  # noqa: D102
        return tuple(dict.fromkeys(m for trigger in self.triggers for m in trigger.monitors))

    def __repr__(self) -> str:
        return " | ".join(map(repr, self.triggers))


def improves(value: float, best: float | None, mode: str, min_delta: float = 0.0) -> bool:
    """Whether ``value`` is finite and better than ``best`` by more than ``min_delta``; any finite value beats none."""
    if not math.isfinite(value):
        return False
    if best is None:
        return True
    return value < best - min_delta if mode == "min" else value > best + min_delta


def counts_steps(trigger: Trigger | None) -> bool:
    """Whether a trigger, or one that it combines, waits for a number of optimizer steps."""
    return any(isinstance(part, StepTrigger) for part in getattr(trigger, "triggers", (trigger,)))
