"""What the callbacks of one fit share: the holds, the learning rates and the moment when the model is complete.

Every callback joins the session of its LightningModule in ``setup`` and leaves it in ``teardown`` (or on an
exception). The last one to leave restores everything, so that a second fit starts clean.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.nn import Parameter

from lightning_freeze.distributed import Snapshot, check_strategy, check_wrapped, reshard, restore_where_saved
from lightning_freeze.errors import ConfigurationError
from lightning_freeze.layers import LayerStack
from lightning_freeze.rates.base_rates import attached
from lightning_freeze.rates.layer_rates import LayerRates
from lightning_freeze.rates.optimizer_layout import Layout, layout
from lightning_freeze.schedule.triggers import Clock
from lightning_freeze.session.holds import Holds
from lightning_freeze.session.toggle_optimizer import untoggle, untoggled

if TYPE_CHECKING:
    from lightning_freeze.compatibility.checks import Company

_SESSIONS: WeakKeyDictionary[LightningModule, Session] = WeakKeyDictionary()


class Member(Hashable, Protocol):
    """A callback that takes part in a session."""

    def on_built(self, session: Session) -> None:
        """Called once, as soon as the module has all its parameters."""

    def on_all_built(self, session: Session) -> None:
        """Called once, when every member has been through :meth:`on_built`."""

    @property
    def stack(self) -> LayerStack:
        """The layers as this member sees them."""


class Session:
    """The state shared by all callbacks of this package that take part in one fit of one module.

    Attributes:
        trainer: The running trainer.
        module: The module that is being fitted.
        holds: What is frozen, and by whom.
        rates: The learning rates of the layers.
        members: The callbacks that have joined, in the trainer's order.
        since: When the parameters that train began to do so, where a schedule decides about them.
        saved_optimizers: The optimizers' states in the checkpoint to resume from.
        company: What else stands in the run, once the module is built.
        is_built: Whether the module has all its parameters.
        is_running: Whether the fit proper has begun; false while Lightning's learning rate and batch size finders try
            things out, which must not move a schedule.
    """

    def __init__(self, trainer: Trainer, module: LightningModule) -> None:
        self.trainer = trainer
        self.module = module
        self.holds = Holds(self._plainly)
        self.rates = LayerRates()
        self.members: list[Member] = []
        self.since: dict[Parameter, Clock] = {}
        self.saved_optimizers: list[dict[str, Any]] = []
        self._said: set[str] = set()
        self.company: Company | None = None
        self.is_built = False
        self.is_running = False
        self._undo: dict[str, Callable[[], None]] = {}
        self._built: Snapshot | None = None

    @classmethod
    def join(cls, trainer: Trainer, module: LightningModule, member: Member) -> Session:
        """Enter the session of ``module``, opening it if this is the first member."""
        session = _SESSIONS.get(module)
        if session is None or session.trainer is not trainer:
            if session is not None:
                session.close()
            session = _SESSIONS[module] = cls(trainer, module)
            session._open()
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

    def at_close(self, undo: Callable[[], None]) -> None:
        """Have something undone when the session closes."""
        self._undo[f"at close: {id(undo)}"] = undo  # unique for as long as it is kept

    def close(self) -> None:
        """Undo everything that the session did to the module."""
        for member in self.members:
            self.holds.release(member)
        self.members.clear()
        untoggle(self.module)
        for name in list(self._undo):
            self._undo.pop(name)()
        if _SESSIONS.get(self.module) is self:
            del _SESSIONS[self.module]

    @property
    def stack(self) -> LayerStack:
        """The layers of the module, as the first member sees them."""
        return self.members[0].stack

    def begin(self) -> None:
        """The fit proper begins: split the optimizers' groups per layer if any member scales learning rates."""
        if self.is_running:
            return
        self.is_running = True
        self._undo.pop("configure_optimizers")()
        self._hold_last()
        with self.holds.lifted():
            check_wrapped(self._pacers(), self.trainer, self.module)
        self._undo["load_checkpoint"] = restore_where_saved(self.trainer, self.module)
        if self._built is not None:
            self.holds.follow(self._built.replaced_modules(self.module))
            self._built.check_parameters(self._pacers(), self.module, lambda p: bool(self.holds.holders(p)))
        if self.rates.sources:
            names: dict[Parameter, str] = {}
            for member in self.members:
                for layer in member.stack:
                    for parameter in layer.parameters():
                        names.setdefault(parameter, layer.name)
            schedulers = [config.scheduler for config in self.trainer.lr_scheduler_configs]
            # Modules that optimize by hand may keep schedulers to themselves.
            schedulers += attached(self.module, self.trainer.optimizers)
            self.rates.split(self.trainer.optimizers, schedulers, names)
        self.rates.adopt(self.trainer.optimizers, self.saved_optimizers)
        self._check_layout()

    def _hold_last(self) -> None:
        # The module's own hook and those of later callbacks run after ours, and may call `train()`. The strategy's is
        # the last one before the training step.
        strategy = self.trainer.strategy
        hook = strategy.on_train_batch_start

        def on_train_batch_start(batch: Any, batch_idx: int) -> None:
            hook(batch, batch_idx)
            self.assert_frozen()

        strategy.on_train_batch_start = on_train_batch_start  # type: ignore[method-assign]
        self.at_close(lambda: vars(strategy).pop("on_train_batch_start", None) and None)

    def _check_layout(self) -> None:
        saved = [layout(state["param_groups"]) for state in self.saved_optimizers]
        now = [layout(optimizer.param_groups) for optimizer in self.trainer.optimizers]
        if self.saved_optimizers and saved != now:
            raise ConfigurationError(
                f"The optimizers in the checkpoint hold parameter groups of {_sizes(saved)} parameters, those of this "
                f"run {_sizes(now)}: it was saved with other callbacks (DiscriminativeLR, GradualUnfreezing and "
                f"PhasedFineTuning make one group for each layer) or another optimizer. Resume with those of the run "
                f"that saved it, or begin a new run from its weights alone."
            )

    def assert_frozen(self) -> None:
        """Hold what is held, before each training batch: users' own ``train()`` and ``requires_grad_()`` calls undo it.

        Raises:
            ConfigurationError: If something else has unfrozen a parameter that a callback holds frozen.
        """
        self.holds.still()
        self.refuse_intruders()

    def refuse_intruders(self) -> None:
        """Refuse to go on, before an optimizer steps, where something else has unfrozen what is held."""
        intruders = self.holds.intruders()
        if intruders:
            name = next((n for n, p in self.module.named_parameters() if p is intruders[0]), "?")
            holder = type(self.holds.holders(intruders[0])[0]).__name__
            raise ConfigurationError(
                f"{holder} holds {len(intruders)} parameters frozen (such as {name}) that something else has "
                f"set to requires_grad=True: your module, or another callback. Only one of them can decide: remove "
                f"the other, or leave these layers out of {holder}."
            )

    def first(self, topic: str) -> bool:
        """Whether nobody in this session has spoken about ``topic`` yet."""
        is_first = topic not in self._said
        self._said.add(topic)
        return is_first

    def _open(self) -> None:
        # Freezing must come before the strategy wraps the model, and after the module has built all of it. Lightning
        # calls `Callback.setup`, `LightningModule.setup` and `configure_model` in this order, so the last one that the
        # module overrides marks the moment; no callback hook lies between it and the wrap.
        self._last = "configure_model" if is_overridden("configure_model", self.module) else "setup"
        self._around(self._last, self._build_after)
        self._around("configure_optimizers", self._with_all_parameters)

    def _around(self, name: str, wrapper: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        module = self.module
        own = vars(module).get(name)
        original = getattr(module, name)
        setattr(module, name, wraps(original)(wrapper(original)))

        def undo() -> None:
            if own is None:
                vars(module).pop(name, None)
            else:
                setattr(module, name, own)

        self._undo[name] = undo

    def _build_after(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def build(*args: Any, **kwargs: Any) -> Any:
            output = original(*args, **kwargs)
            if not self.is_built:
                self.is_built = True
                self._undo.pop(self._last)()
                reshard(self.module)
                for member in list(self.members):
                    member.on_built(self)
                self._built = Snapshot(self.module)
                for member in list(self.members):
                    member.on_all_built(self)
                check_strategy(self._pacers(), self.trainer)
                self._check_something_trains()
            return output

        return build

    def _pacers(self) -> list[str]:
        return [type(source).__name__ for source in self.rates.sources]

    @contextmanager
    def _plainly(self) -> Iterator[None]:
        reshard(self.module)
        with untoggled(self.module):
            yield

    def _check_something_trains(self) -> None:
        if not any(parameter.requires_grad for parameter in self.module.parameters()):
            holders = [type(member).__name__ for member in self.members]
            verb = "freezes" if len(holders) == 1 else "freeze"
            raise ConfigurationError(
                f"Nothing is left to train: {' and '.join(holders)} {verb} all parameters of "
                f"{type(self.module).__name__}. Leave at least one layer out, usually the head."
            )

    def _with_all_parameters(self, original: Callable[..., Any]) -> Callable[..., Any]:
        # Modules often hand only the parameters that require grad to their optimizer. It must hold those of frozen
        # layers too, or they could never be unfrozen and the layout of a checkpoint would depend on the phase it was
        # saved in.
        def configure_optimizers(*args: Any, **kwargs: Any) -> Any:
            with self.holds.lifted():
                return original(*args, **kwargs)

        return configure_optimizers


def _sizes(layouts: list[Layout]) -> str:
    return " and ".join("+".join(map(str, groups)) for groups in layouts)
