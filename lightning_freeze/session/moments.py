"""The moments of a run, each passed on once however many callbacks take part.

The first callback passes Lightning's hooks on to here. Schedules decide what trains, what is frozen is kept frozen, and
the observers are told, in the order of ``callbacks/observers.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from lightning_freeze.checkpoints.base_weights import note_trained, note_versions
from lightning_freeze.distributed import Snapshot, check_strategy, check_wrapped, reshard, restore_where_saved
from lightning_freeze.run_warnings.record import begin_run
from lightning_freeze.session import consistency
from lightning_freeze.session.module_hooks import call_when_built, configure_optimizers_within
from lightning_freeze.session.observer import Observer, PhaseChange
from lightning_freeze.session.saved_optimizers import check_before_restoring
from lightning_freeze.session.session import Member, Session
from lightning_freeze.session.toggle_optimizer import untoggled

_OPEN: WeakKeyDictionary[LightningModule, Moments] = WeakKeyDictionary()

ObserverFactory = Callable[[Session], Sequence[Observer]]
"""Makes the observers of a session whose members have all joined."""


class Moments:
    """Drives the session of one fit.

    Args:
        trainer: The running trainer.
        module: The module that is being fitted.
        make_observers: Makes the observers.

    Attributes:
        session: What the callbacks share.
    """

    def __init__(self, trainer: Trainer, module: LightningModule, make_observers: ObserverFactory) -> None:
        self.session = Session(trainer, module, self)
        self._make_observers = make_observers
        self._observers: Sequence[Observer] = ()
        self.session.at_close(call_when_built(module, self._build))
        # Modules often hand only the parameters that require grad to their optimizer. It must hold those of frozen
        # layers too, or they could never be unfrozen.
        self._undo_configure_optimizers = configure_optimizers_within(module, self.session.holds.lifted)
        self.session.at_close(self._undo_configure_optimizers)

    @classmethod
    def join(
        cls, trainer: Trainer, module: LightningModule, member: Member, make_observers: ObserverFactory
    ) -> Moments:
        """Enter the session of a module, opening it if this is the first member."""
        moments = cls.of(module)
        if moments is None or moments.session.trainer is not trainer:
            if moments is not None:
                moments.session.close()
            begin_run(trainer)
            moments = _OPEN[module] = cls(trainer, module, make_observers)
            moments.session.at_close(lambda: _OPEN.pop(module, None))
        moments.session.members.append(member)
        return moments

    @staticmethod
    def of(module: LightningModule) -> Moments | None:
        """The open session of a module, if there is one."""
        return _OPEN.get(module)

    def _build(self) -> None:
        self.session.is_built = True
        reshard(self.session.module)
        note_versions(self.session.module)  # before a member changes any weights
        for member in list(self.session.members):
            member.join(self.session)
        self._snapshot = Snapshot(self.session.module)
        self.session.rates.freezes = any(member.freezes_layers for member in self.session.members)
        self._observers = self._make_observers(self.session)
        for member in list(self.session.members):
            member.check(self.session)
        check_strategy(self._rate_owners(), self.session.trainer)
        consistency.check_something_trains(self.session.module, self.session.members)

    def begin(self) -> None:
        """Start the fit proper: scale the learning rates within each optimizer step from now on."""
        if self.session.is_running:
            return
        self.session.is_running = True
        self._undo_configure_optimizers()
        self.session.at_close(consistency.call_before_training_step(self.session.trainer, self._before_training_step))
        with self.session.holds.lifted():
            check_wrapped(self._rate_owners(), self.session.trainer, self.session.module)
        self.session.at_close(restore_where_saved(self.session.trainer, self.session.module))
        if self.session.is_built:
            self.session.holds.follow(self._snapshot.replaced_modules(self.session.module))
            self._snapshot.check_parameters(
                self._rate_owners(), self.session.module, lambda parameter: bool(self.session.holds.holders(parameter))
            )
        self.session.at_close(check_before_restoring(self.session.trainer))
        self.session.at_close(consistency.call_if_a_step_raises(self.session.trainer, self.session.rates.restore))
        self.session.rates.attach(self.session.trainer.optimizers)

    def start_fit(self) -> None:
        """Tell the observers that the optimizers exist."""
        self.begin()
        self._tell("start_fit")

    def start_training(self) -> None:
        """Tell the observers that everything is restored and training begins."""
        if self.session.is_running:
            self.assert_frozen()
            self._note_trained()
            self._tell("start_training")

    def start_batch(self) -> None:
        """Let the schedules decide what trains in this batch, hold the rest frozen, and tell the observers."""
        if self.session.is_running:
            for schedule in self.session.schedules:
                schedule.advance()
            self.session.rates.restore()
            self.session.rates.attach(self.session.trainer.optimizers)
            self.session.rates.move_innermost()
        self.assert_frozen()
        self._tell("start_batch")

    def _before_training_step(self) -> None:
        # The module's own hook, and those of later callbacks, may have changed modes, optimizers and their groups.
        self.assert_frozen()
        self.session.rates.attach(self.session.trainer.optimizers)

    def before_backward(self, loss: Tensor) -> None:
        """Tell the observers that a forward pass has ended, and its loss."""
        self._tell("before_backward")
        self._tell("see_loss", loss)

    def before_step(self, optimizer: Optimizer) -> None:
        """Check that frozen parameters still are, and tell the observers that an optimizer is about to step."""
        consistency.refuse_unfrozen(self.session.module, self.session.holds)
        self._tell("before_step", optimizer)

    def end_batch(self, batch_idx: int) -> None:
        """Tell the observers that a training batch has ended."""
        self._tell("end_batch", batch_idx)

    def end_validation(self) -> None:
        """Tell the observers that a validation has ended."""
        if self.session.is_running:
            self._tell("end_validation")

    def change_phase(self, change: PhaseChange) -> None:
        """Tell the observers that other layers train from now on."""
        self.session.phase_changes.append(change)
        self._note_trained()
        self._tell("change_phase", change)

    def end_training(self) -> None:
        """Tell the observers that training has ended as planned."""
        if self.session.is_running:
            self._note_trained()  # the module's own code may have unfrozen layers too
            self._tell("end_training")

    def fail(self, exception: BaseException) -> None:
        """Tell the observers, once, that training ends with an exception."""
        if self.session.is_first("exception"):
            self.session.rates.restore()
            self._tell("fail", exception)

    def assert_frozen(self) -> None:
        """Hold what is held, before each training batch: users' own ``train()`` and ``requires_grad_()`` calls undo it.

        Raises:
            ConfigurationError: If something else has unfrozen a parameter that a callback holds frozen.
        """
        self.session.holds.set_eval_mode()
        consistency.refuse_unfrozen(self.session.module, self.session.holds)

    def _note_trained(self) -> None:
        with untoggled(self.session.module):
            note_trained(self.session.module)

    def _tell(self, moment: str, *args: Any) -> None:
        for observer in self._observers:
            getattr(observer, moment)(*args)

    def _rate_owners(self) -> list[str]:
        return [type(source.owner).__name__ for source in self.session.rates.sources]
