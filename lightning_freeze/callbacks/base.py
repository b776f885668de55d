"""What all callbacks of this package have in common: they take part in the session of the fitted module."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BaseFinetuning
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import LBFGS, Optimizer

from lightning_freeze.compatibility.checks import Company
from lightning_freeze.diagnostics.missing_gradients import GradientCheck
from lightning_freeze.diagnostics.wasted_backward import SavingCheck
from lightning_freeze.errors import ConfigurationError
from lightning_freeze.layers import LayerStack
from lightning_freeze.layers.analysis.randomness import noise_lines, unrest
from lightning_freeze.report.layer_table import layer_table
from lightning_freeze.session.session import Session

Groups = Mapping[str, Sequence[str]]


class LayerCallback(Callback):
    """Joins the session of a fit, sees the module's layers, and leaves everything as it found it.

    Args:
        groups: An explicit, ordered map from layer name to module-name prefixes, for modules whose layers should not be
            found automatically. Parameters that the map leaves out stay untouched.
        verbose: Whether to print the table of layers at the start and the end of a fit, and one line at each change.
    """

    def __init__(self, groups: Groups | None = None, verbose: bool = True) -> None:
        self._saving: SavingCheck | None = None
        self._gradients: GradientCheck | None = None
        self.groups = groups
        self.verbose = verbose
        self._session: Session | None = None
        self._stack: LayerStack | None = None

    @property
    def stack(self) -> LayerStack:
        """The layers of the module that is being fitted, or was fitted last."""
        if self._stack is None:
            raise ConfigurationError(f"{type(self).__name__} knows the layers of a module only once a fit has begun.")
        return self._stack

    def prepare(self, session: Session) -> None:
        """Do what has to be done once the module has all its parameters; the layers are in :attr:`stack`."""

    def on_built(self, session: Session) -> None:  # noqa: D102
        with self._explained():
            self._stack = LayerStack(session.module, groups=self.groups)
            self.prepare(session)

    def on_all_built(self, session: Session) -> None:
        """Check the set-up as a whole, once every callback has prepared."""
        if session.company is None:
            session.company = Company(session)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: D102
        if stage == TrainerFn.FITTING:
            self._session = Session.join(trainer, pl_module, self)

    def on_load_checkpoint(  # noqa: D102
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        states = checkpoint.get("optimizer_states")
        # Lightning's learning rate and batch size finders restore too, in the midst of a run, what they have saved.
        if self._session is not None and states and not trainer.optimizers:
            self._session.saved_optimizers = states
            # All callbacks of the run that saved it knew the same rates, and other callbacks may go on with them.
            rates = [s["rates"] for s in checkpoint.get("callbacks", {}).values() if _has_rates(s)]
            self._session.rates.load_state_dict(rates[0] if rates else None)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        if self._session is not None:
            self._session.begin()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        session = self._session
        if session is None or not session.is_running:
            return
        session.assert_frozen()
        session.rates.write(force=True)
        if self.verbose and session.first("table"):
            pl_module.print(layer_table(session))

    def on_train_batch_start(  # noqa: D102
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._session is not None:
            self._session.assert_frozen()
            self._session.rates.write()
            if self._session.company is not None:
                self._session.company.on_batch_start()

    def on_before_optimizer_step(  # noqa: D102
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        if self._session is not None:
            self._session.refuse_intruders()
            self._session.rates.write()
            if self._session.company is not None:
                self._session.company.on_before_step(optimizer)

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:  # noqa: D102
        # The scheduler has stepped: whoever reads the rates at the start of the next batch shall see them as they are.
        if self._session is not None:
            self._session.rates.write()
            if self._session.company is not None:
                self._session.company.on_batch_end()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        session = self._session
        if session is not None and session.is_running and self.verbose and session.first("final table"):
            pl_module.print(layer_table(session, ended=True))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: D102
        self._leave()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:  # noqa: D102
        if self._session is not None and self._session.company is not None and self._session.first("explanation"):
            self._session.company.explain(exception)
        self._leave()

    def _leave(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.leave(self)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except ConfigurationError:
            raise
        except ValueError as error:
            raise ConfigurationError(f"{type(self).__name__}: {error}") from error

    def __getstate__(self) -> dict[str, Any]:
        # A copy or a pickle of a callback is its configuration and progress, never the run that it takes part in.
        # (`log` is the module's own method, which Lightning attaches.)
        run = dict.fromkeys(("_session", "_stack", "_saving", "_gradients"))
        return {k: v for k, v in vars(self).items() if k != "log"} | run


class FreezingCallback(LayerCallback):
    """A callback that sets ``requires_grad``.

    Args:
        groups: See :class:`LayerCallback`.
        frozen_eval: Whether frozen modules are in eval mode: dropout off, BatchNorm statistics still.
        verbose: See :class:`LayerCallback`.
    """

    def __init__(self, groups: Groups | None = None, frozen_eval: bool = True, verbose: bool = True) -> None:
        super().__init__(groups=groups, verbose=verbose)
        self.frozen_eval = frozen_eval

    def on_all_built(self, session: Session) -> None:  # noqa: D102
        super().on_all_built(session)
        for callback in session.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, BaseFinetuning):
                raise ConfigurationError(
                    f"{type(self).__name__} and {type(callback).__name__} both decide which parameters train; keep "
                    f"one of them. GradualUnfreezing(start='head') does what BackboneFinetuning does, layer by layer."
                )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        super().on_fit_start(trainer, pl_module)
        for optimizer in trainer.optimizers:
            if isinstance(optimizer, LBFGS):
                raise ConfigurationError(
                    f"{type(self).__name__} cannot be used with LBFGS, which moves all of its parameters together, "
                    f"those of frozen layers included; use a first-order optimizer such as AdamW."
                )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        super().on_train_start(trainer, pl_module)
        if self._session is not None and self._session.is_running:
            self._saving = SavingCheck(self, self._session)
            self._saving.look_ahead()
            self._gradients = GradientCheck(self, self._session)
            if self.verbose and self._session.first("noise"):
                for line in noise_lines(self.stack, unrest(self.stack)):
                    pl_module.print(f"{line[:1].upper()}{line[1:]}.")

    def on_train_batch_start(  # noqa: D102
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if self._saving is not None:
            self._saving.begin_batch()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:  # noqa: D102
        if self._saving is not None:
            self._saving.end_forward()

    def on_before_optimizer_step(  # noqa: D102
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        super().on_before_optimizer_step(trainer, pl_module, optimizer)
        if self._gradients is not None:
            self._gradients.before_step(optimizer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        super().on_train_end(trainer, pl_module)
        if self._gradients is not None:
            self._gradients.end_phase()

    def _leave(self) -> None:
        self._saving = self._gradients = None
        super()._leave()


def _has_rates(state: object) -> bool:
    rates = state.get("rates") if isinstance(state, Mapping) else None
    return isinstance(rates, list) and all(isinstance(groups, list) for groups in rates)
