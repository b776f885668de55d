"""What is told of the moments of a run, and what a schedule looks like from outside."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from typing import NamedTuple

from torch import Tensor
from torch.nn import Module, Parameter
from torch.optim import Optimizer

from lightning_freeze.layers import LayerStack
from lightning_freeze.schedule.phases import Phase
from lightning_freeze.schedule.triggers import Clock


class PhaseChange(NamedTuple):
    """A schedule has begun its next phase.

    Attributes:
        plan: All phases of the schedule.
        phase: Index of the phase that begins.
        layers: Names of the layers that train from now on, in the order of ``names``.
        names: Names of all layers that the schedule knows.
        monitor: The metric that decides about the best weights, if the schedule restores them.
        restored: The value that the restored weights had; ``None`` if none were restored.
        verbose: Whether the schedule's callback prints.
        clock: When the phase begins.
        reason: Why the phase before is over, in words.
    """

    plan: Sequence[Phase]
    phase: int
    layers: Sequence[str]
    names: Sequence[str]
    monitor: str | None
    restored: float | None
    verbose: bool
    clock: Clock
    reason: str


class Observer:
    """Is told of each moment of a run once, however many callbacks take part in it.

    Every method does nothing unless a subclass defines it. The session calls its observers in a fixed order, which
    ``callbacks/observers.py`` lists.
    """

    def start_fit(self) -> None:
        """The strategy has wrapped the model and the optimizers exist; no checkpoint of them is loaded yet."""

    def start_training(self) -> None:
        """Everything is restored, and training begins."""

    def start_batch(self) -> None:
        """A training batch begins; which layers train in it is decided."""

    def before_backward(self) -> None:
        """The forward pass of a training batch has ended."""

    def see_loss(self, loss: Tensor) -> None:
        """A loss is about to be differentiated, right after :meth:`before_backward`.

        Args:
            loss: The loss, divided by ``accumulate_grad_batches``.
        """

    def before_step(self, optimizer: Optimizer) -> None:
        """An optimizer is about to step."""

    def end_batch(self, batch_idx: int) -> None:
        """A training batch has ended, and the schedulers have stepped."""

    def end_validation(self) -> None:
        """A validation has ended, or the sanity check before training."""

    def change_phase(self, change: PhaseChange) -> None:
        """Other layers train from the next forward pass on."""

    def end_training(self) -> None:
        """Training has ended as planned."""

    def fail(self, exception: BaseException) -> None:
        """Training ends with an exception."""


class Schedule(Observer, ABC):
    """The phases of one callback, as the rest of a run sees them.

    Attributes:
        owner: The callback, which holds what is frozen.
        stack: The layers as the callback sees them.
    """

    owner: Hashable
    stack: LayerStack

    @property
    @abstractmethod
    def plan(self) -> list[Phase]:
        """The phases of the module that is being fitted."""

    @property
    @abstractmethod
    def phase(self) -> int:
        """Index of the running phase."""

    @property
    @abstractmethod
    def freezes(self) -> list[tuple[Sequence[Parameter], Sequence[Module]]]:
        """For each phase, what it holds frozen and what it puts in eval mode."""

    @property
    @abstractmethod
    def steps_taken(self) -> int:
        """Steps that all optimizers have taken in this run."""

    @property
    @abstractmethod
    def restores_best(self) -> bool:
        """Whether a new phase begins with the best weights of the one before."""

    @abstractmethod
    def advance(self) -> None:
        """A training batch begins: put the next phase into effect if its time has come."""

    @abstractmethod
    def preview(self, phase: int) -> None:
        """Put a phase into effect before the run begins, at its full rates, to see what it would do.

        Args:
            phase: Index of the phase.
        """
