"""One fit of one module, as all callbacks of this package share it.

Every callback joins the session of its module in ``setup`` and leaves it in ``teardown`` or on an exception. The last
one to leave restores everything, so that a second fit starts clean. The first member passes each moment of the run on
to the session, which lets the schedules decide what trains, keeps what is frozen frozen, and tells the observers.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from lightning.pytorch import LightningModule, Trainer
from torch.nn import Parameter
from torch.optim import Optimizer

from lightning_freeze.distributed import Snapshot, check_strategy, check_wrapped, reshard, restore_where_saved
from lightning_freeze.layers import LayerStack
from lightning_freeze.layers.discovery.groups import Groups
from lightning_freeze.rates.optimizer_rates import OptimizerRates
from lightning_freeze.schedule.triggers import Clock
from lightning_freeze.session import consistency
from lightning_freeze.session.holds import Holds
from lightning_freeze.session.module_hooks import call_when_built, configure_optimizers_within
from lightning_freeze.session.observer import Observer, PhaseChange, Schedule
from lightning_freeze.session.saved_optimizers import check_before_restoring
from lightning_freeze.session.toggle_optimizer import untoggle, untoggled

_SESSIONS: WeakKeyDictionary[LightningModule, Session] = WeakKeyDictionary()


class Member(Hashable, Protocol):
    """A callback that takes part in a session.

    Attributes:
        verbose: Whether it prints.
        freezes_layers: Whether it sets ``requires_grad``.
    """

    verbose: bool
    freezes_layers: bool

    @property
    def stack(self) -> LayerStack:
        """The layers as this member sees them."""

    @property
    def schedule(self) -> Schedule | None:
        """Its phases, ``None`` if it has none."""

    def join(self, session: Session) -> None:
        """Called once, as soon as the module has all its parameters: hold layers, scale rates."""

    def check(self, session: Session) -> None:
        """Called once, when every member has joined: refuse what does not go together."""


class Session:
    """The state shared by all callbacks of this package that take part in one fit of one module.

    Attributes:
        trainer: The running trainer.
        module: The module that is being fitted.
        holds: What is frozen, and by whom.
        rates: The learning rates of the layers.
        members: The callbacks that have joined, in the trainer's order.
        since: When the parameters that train began to do so, where a schedule decides about them.
        is_built: Whether the module has all its parameters.
        is_running: Whether the fit proper has begun; false while Lightning's learning rate and batch size finders try
            things out, which must not move a schedule.
    """

    def __init__(self, trainer: Trainer, module: LightningModule) -> None:
        self.trainer = trainer
        self.module = module
        self.holds = Holds(self.requires_grad_as_given)
        self.rates = OptimizerRates()
        self.members: list[Member] = []
        self.since: dict[Parameter, Clock] = {}
        self.is_built = False
        self.is_running = False
        self._make_observers: Callable[[Session], Sequence[Observer]] = lambda session: ()
        self._observers: Sequence[Observer] = ()
        self._topics: set[str] = set()
        self._stacks: list[tuple[Groups | None, LayerStack]] = []
        self._undo = ExitStack()
        self._undo_configure_optimizers: Callable[[], None] = lambda: None

    # ------------------------------------------------------------------------------------------ members

    @classmethod
    def join(
        cls,
        trainer: Trainer,
        module: LightningModule,
        member: Member,
        make_observers: Callable[[Session], Sequence[Observer]],
    ) -> Session:
        """Enter the session of ``module``, opening it if this is the first member."""
        session = _SESSIONS.get(module)
        if session is None or session.trainer is not trainer:
            if session is not None:
                session.close()
            session = _SESSIONS[module] = cls(trainer, module)
            session._make_observers = make_observers
            session.at_close(call_when_built(module, session._build))
            # Modules often hand only the parameters that require grad to their optimizer. It must hold those of frozen
            # layers too, or they could never be unfrozen.
            session._undo_configure_optimizers = configure_optimizers_within(module, session.holds.lifted)
            session.at_close(session._undo_configure_optimizers)
        session.members.append(member)
        return session

    @staticmethod
    def of(module: LightningModule) -> Session | None:
        """The open session of a module, if there is one."""
        return _SESSIONS.get(module)

    def leave(self, member: Member) -> None:
        """Exit; the last member to leave closes the session."""
        if member in self.members:
            self.members.remove(member)
            self.holds.release(member)
        if not self.members:
            self.close()

    def at_close(self, undo: Callable[[], object]) -> None:
        """Have something undone when the session closes."""
        self._undo.callback(undo)

    def close(self) -> None:
        """Undo everything that the session did to the module."""
        for member in self.members:
            self.holds.release(member)
        self.members.clear()
        untoggle(self.module)
        self.rates.detach()
        self._undo.close()
        if _SESSIONS.get(self.module) is self:
            del _SESSIONS[self.module]

    @property
    def stack(self) -> LayerStack:
        """The layers of the module, as the first member sees them."""
        return self.members[0].stack

    @property
    def schedules(self) -> list[Schedule]:
        """The phases of every member that has any."""
        return [member.schedule for member in self.members if member.schedule is not None]

    def stack_for(self, groups: Groups | None) -> LayerStack:
        """The layers of the module, found once for all members with the same ``groups``."""
        found = next((stack for known, stack in self._stacks if known == groups), None)
        if found is None:
            found = LayerStack(self.module, groups=groups)
            self._stacks.append((groups, found))
        return found

    def is_first(self, topic: str) -> bool:
        """Whether nothing has been printed or warned about ``topic`` in this session yet."""
        is_first = topic not in self._topics
        self._topics.add(topic)
        return is_first

    @contextmanager
    def requires_grad_as_given(self) -> Iterator[None]:
        """Let ``requires_grad`` stand as it does outside of ``toggle_optimizer``, on the module's own parameters."""
        reshard(self.module)
        with untoggled(self.module):
            yield

    # ------------------------------------------------------------------------------------------ moments

    def _build(self) -> None:
        self.is_built = True
        reshard(self.module)
        for member in list(self.members):
            member.join(self)
        self._snapshot = Snapshot(self.module)
        self.rates.freezes = any(member.freezes_layers for member in self.members)
        self._observers = self._make_observers(self)
        for member in list(self.members):
            member.check(self)
        check_strategy(self._rate_owners(), self.trainer)
        consistency.check_something_trains(self.module, self.members)

    def begin(self) -> None:
        """The fit proper begins: scale the learning rates within each optimizer step from now on."""
        if self.is_running:
            return
        self.is_running = True
        self._undo_configure_optimizers()
        self.at_close(consistency.hold_before_training_step(self.trainer, self.assert_frozen))
        with self.holds.lifted():
            check_wrapped(self._rate_owners(), self.trainer, self.module)
        self.at_close(restore_where_saved(self.trainer, self.module))
        if self.is_built:
            self.holds.follow(self._snapshot.replaced_modules(self.module))
            is_held = lambda parameter: bool(self.holds.holders(parameter))  # noqa: E731
            self._snapshot.check_parameters(self._rate_owners(), self.module, is_held)
        self.at_close(check_before_restoring(self.trainer))
        self.at_close(consistency.call_if_a_step_raises(self.trainer, self.rates.restore))
        self.rates.attach(self.trainer.optimizers)

    def start_fit(self) -> None:
        """Tell that the optimizers exist."""
        self.begin()
        self._tell("start_fit")

    def start_training(self) -> None:
        """Tell that everything is restored and training begins."""
        if self.is_running:
            self.assert_frozen()
            self._tell("start_training")

    def start_batch(self) -> None:
        """Let the schedules decide what trains in this batch, hold the rest frozen, and tell the observers."""
        if self.is_running:
            for schedule in self.schedules:
                schedule.advance()
            self.rates.restore()
            self.rates.attach(self.trainer.optimizers)
        self.assert_frozen()
        self._tell("start_batch")

    def before_backward(self) -> None:
        """Tell that a forward pass has ended."""
        self._tell("before_backward")

    def before_step(self, optimizer: Optimizer) -> None:
        """Check that what is frozen is, and tell that an optimizer is about to step."""
        consistency.refuse_unfrozen(self.module, self.holds)
        self._tell("before_step", optimizer)

    def end_batch(self, batch_idx: int) -> None:
        """Tell that a training batch has ended."""
        self._tell("end_batch", batch_idx)

    def end_validation(self) -> None:
        """Tell that a validation has ended."""
        if self.is_running:
            self._tell("end_validation")

    def change_phase(self, change: PhaseChange) -> None:
        """Tell that other layers train from now on."""
        self._tell("change_phase", change)

    def end_training(self) -> None:
        """Tell that training has ended as planned."""
        if self.is_running:
            self._tell("end_training")

    def fail(self, exception: BaseException) -> None:
        """Tell, once, that training ends with an exception."""
        if self.is_first("exception"):
            self.rates.restore()
            self._tell("fail", exception)

    def assert_frozen(self) -> None:
        """Hold what is held, before each training batch: users' own ``train()`` and ``requires_grad_()`` calls undo it.

        Raises:
            ConfigurationError: If something else has unfrozen a parameter that a callback holds frozen.
        """
        self.holds.set_eval_mode()
        consistency.refuse_unfrozen(self.module, self.holds)

    def _tell(self, moment: str, *args: Any) -> None:
        for observer in self._observers:
            getattr(observer, moment)(*args)

    def _rate_owners(self) -> list[str]:
        return [type(source.owner).__name__ for source in self.rates.sources]
