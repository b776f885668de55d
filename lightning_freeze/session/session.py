"""One fit of one module: the state that all callbacks of this package share.

``moments.py`` drives it: callbacks join a session in ``setup``, and the last one to leave restores everything.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Protocol

from lightning.pytorch import LightningModule, Trainer
from torch.nn import Parameter

from lightning_freeze.distributed import reshard
from lightning_freeze.layers import LayerStack
from lightning_freeze.layers.discovery.groups import Groups
from lightning_freeze.rates.optimizer_rates import OptimizerRates
from lightning_freeze.schedule.triggers import Clock
from lightning_freeze.session.holds import Holds
from lightning_freeze.session.observer import PhaseChange, Schedule
from lightning_freeze.session.toggle_optimizer import untoggle, untoggled


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


class Announcer(Protocol):
    """What a session needs of the one that drives it."""

    def begin(self) -> None:
        """The fit proper begins, if it has not yet."""

    def change_phase(self, change: PhaseChange) -> None:
        """Tell that other layers train from now on."""


class Session:
    """The state shared by all callbacks of this package that take part in one fit of one module.

    Attributes:
        trainer: The running trainer.
        module: The module that is being fitted.
        holds: What is frozen, and by whom.
        rates: The learning rates of the layers.
        announcer: Passes the moments of the run on.
        members: The callbacks that have joined, in the trainer's order.
        since: When the parameters that train began to do so, where a schedule decides about them.
        phase_changes: The changes of phase since the fit began, in order.
        is_built: Whether the module has all its parameters.
        is_running: Whether the fit proper has begun; false while Lightning's learning rate and batch size finders try
            things out, which must not move a schedule.
    """

    def __init__(self, trainer: Trainer, module: LightningModule, announcer: Announcer) -> None:
        self.trainer = trainer
        self.module = module
        self.announcer = announcer
        self.holds = Holds(self.requires_grad_as_given)
        self.rates = OptimizerRates()
        self.members: list[Member] = []
        self.since: dict[Parameter, Clock] = {}
        self.phase_changes: list[PhaseChange] = []
        self.is_built = False
        self.is_running = False
        self._topics: set[str] = set()
        self._stacks: list[tuple[Groups | None, LayerStack]] = []
        self._undo = ExitStack()

    def leave(self, member: Member) -> None:
        """Exit; the last member to leave closes the session."""
        if member in self.members:
            self.members.remove(member)
            self.holds.release(member)
        if not self.members:
            self.close()

    def close(self) -> None:
        """Undo everything that the session did to the module."""
        for member in self.members:
            self.holds.release(member)
        self.members.clear()
        untoggle(self.module)
        self.rates.detach()
        self._undo.close()

    def at_close(self, undo: Callable[[], object]) -> None:
        """Have something undone when the session closes."""
        self._undo.callback(undo)

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
