"""What all callbacks of this package have in common: they take part in the session of the fitted module."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from lightning_freeze.callbacks.observers import make_observers
from lightning_freeze.checkpoints.loading import fill_when_loading
from lightning_freeze.errors import ConfigurationError
from lightning_freeze.layers import LayerStack
from lightning_freeze.namespaces import Callback
from lightning_freeze.rates.optimizer_rates import State
from lightning_freeze.session.moments import Moments
from lightning_freeze.session.observer import Schedule
from lightning_freeze.session.session import Session

Groups = Mapping[str, str | Sequence[str]]
"""Layer name to the module-name prefixes that it holds, in the order of the data flow."""


class LayerCallback(Callback):
    """Joins the session of a fit, and passes the moments of the run on to it if it is the first member.

    Args:
        groups: An explicit, ordered map from layer name to module-name prefixes, for modules whose layers should not be
            found automatically. Parameters that the map leaves out stay untouched.
        verbose: Whether to print the table of layers at the start and the end of a fit, and one line at each change.

    Attributes:
        freezes_layers: Whether it sets ``requires_grad``.
        has_lr_schedule: Whether it moves the rates over the whole run, in place of a scheduler. ``TransformerModule``
            then leaves its default schedule out.
    """

    freezes_layers = False
    has_lr_schedule = False
    save_frozen = True

    def __init__(self, groups: Groups | None = None, verbose: bool = True) -> None:
        self.groups = groups
        self.verbose = verbose
        self._session: Session | None = None
        self._moments: Moments | None = None
        self._stack: LayerStack | None = None
        self._rates: State | None = None
        self._undo_filling: Callable[[], object] = _nothing

    @property
    def stack(self) -> LayerStack:
        """The layers of the module that is being fitted, or was fitted last."""
        if self._stack is None:
            raise ConfigurationError(f"{type(self).__name__} knows the layers of a module only once a fit has begun.")
        return self._stack

    @property
    def schedule(self) -> Schedule | None:
        """The phases of this callback, ``None`` if it has none."""
        return None

    def prepare(self, session: Session) -> None:
        """Do what has to be done once the module has all its parameters; the layers are in :attr:`stack`."""

    def join(self, session: Session) -> None:  # noqa: D102
        with self._named_in_errors():
            self._stack = session.stack_for(self.groups)
            self.prepare(session)

    def omitted_when_frozen(self) -> dict[Parameter, str]:  # noqa: D102
        return {}

    def check(self, session: Session) -> None:
        """Check the set-up as a whole, once every callback has prepared."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: D102
        self._undo_filling = fill_when_loading(trainer, pl_module)
        if stage == TrainerFn.FITTING:
            self._rates = None
            self._moments = Moments.join(trainer, pl_module, self, make_observers)
            self._session = self._moments.session

    def on_load_checkpoint(  # noqa: D102
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if moments := self._led:
            # All callbacks of the run that saved it have the same state of the rates, and others may go on with it.
            rates = [s["rates"] for s in checkpoint.get("callbacks", {}).values() if _has_rates(s)]
            moments.session.rates.load_state_dict(rates[0] if rates else None)

    def rates_state(self) -> State | None:
        """What optimizers keep in their parameter groups for each layer, now or at the end of the last fit."""
        if self._session is not None:
            self._rates = self._session.rates.state_dict()
        return self._rates

    @property
    def _led(self) -> Moments | None:
        """What passes the moments of the run on, if this callback is the one that tells it of them."""
        session = self._session
        return self._moments if session is not None and session.members[0] is self else None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        if moments := self._led:
            moments.start_fit()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        if moments := self._led:
            moments.start_training()

    def on_train_batch_start(  # noqa: D102
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if moments := self._led:
            moments.start_batch()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:  # noqa: D102
        if moments := self._led:
            moments.before_backward(loss)

    def on_before_optimizer_step(  # noqa: D102
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        if moments := self._led:
            moments.before_step(optimizer)

    def on_train_batch_end(  # noqa: D102
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if moments := self._led:
            moments.end_batch(batch_idx)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        if moments := self._led:
            moments.end_validation()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        if moments := self._led:
            moments.end_training()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: D102
        self._leave()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:  # noqa: D102
        if moments := self._led:
            moments.fail(exception)
        self._leave()

    def _leave(self) -> None:
        self.rates_state()
        self._undo_filling()
        self._undo_filling = _nothing
        session, self._session, self._moments = self._session, None, None
        if session is not None:
            session.leave(self)

    @contextmanager
    def _named_in_errors(self) -> Iterator[None]:
        try:
            yield
        except ConfigurationError:
            raise
        except ValueError as error:
            raise ConfigurationError(f"{type(self).__name__}: {error}") from error

    def __getstate__(self) -> dict[str, Any]:
        # A copy or a pickle of a callback is its configuration and progress, never the run that it takes part in.
        # `log` and `log_dict` are methods of the module, which Lightning attaches to its callbacks.
        own = {name: value for name, value in vars(self).items() if name not in ("log", "log_dict")}
        return own | {"_session": None, "_moments": None, "_stack": None, "_undo_filling": _nothing}


class FreezingCallback(LayerCallback):
    """A callback that sets ``requires_grad``.

    Args:
        groups: See :class:`LayerCallback`.
        frozen_eval: Whether frozen modules are in eval mode: dropout off, BatchNorm statistics unchanged.
        verbose: See :class:`LayerCallback`.
        save_frozen: Whether checkpoints hold the frozen weights that never changed.
    """

    freezes_layers = True
    warns_of_wasted_backward = True

    def __init__(
        self, groups: Groups | None = None, frozen_eval: bool = True, verbose: bool = True, save_frozen: bool = True
    ) -> None:
        super().__init__(groups=groups, verbose=verbose)
        self.frozen_eval = frozen_eval
        self.save_frozen = save_frozen

    def omitted_when_frozen(self) -> dict[Parameter, str]:  # noqa: D102
        if self.save_frozen:
            return {}
        return {parameter: layer.name for layer in self.stack for parameter in layer.parameters()}


def _nothing() -> None:
    pass


def _has_rates(state: object) -> bool:
    rates = state.get("rates") if isinstance(state, Mapping) else None
    return isinstance(rates, list) and all(isinstance(groups, list) for groups in rates)
