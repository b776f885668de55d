"""What else stands in a run: other callbacks, and what has been done to the module before the fit.

Each set-up is made to work where it is certain how, and refused otherwise with one message that says what to do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning.pytorch import callbacks as lightnings
from lightning.pytorch.callbacks import BatchSizeFinder, Callback, LearningRateFinder, StochasticWeightAveraging
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch.nn import Module, Parameter
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from lightning_freeze.compatibility.activation_checkpointing import (
    ReentrantWatch,
    make_non_reentrant,
    models_with_input_grads,
    release_inputs,
)
from lightning_freeze.compatibility.compile import GraphCount, raise_limits
from lightning_freeze.compatibility.tuner import find_the_users_rate, measure_the_largest_phase
from lightning_freeze.compatibility.weight_averaging import keep_layer_rates
from lightning_freeze.errors import ConfigurationError
from lightning_freeze.layers.analysis.quantised import find_barrier
from lightning_freeze.schedule.triggers import StepTrigger, Trigger
from lightning_freeze.session.toggle_optimizer import untoggled

if TYPE_CHECKING:
    from lightning_freeze.session.session import Session

#: Not in every version of Lightning that this package works with.
_WEIGHT_AVERAGING: type | tuple[()] = getattr(lightnings, "WeightAveraging", ())


class Company:
    """The rest of a run, from where a session stands.

    Args:
        session: The running fit, when all of its members are built and the strategy has not wrapped the module yet.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self._watch = ReentrantWatch()
        self._graphs: GraphCount | None = None
        self._phases: list[int] | None = None
        self._has_changed = False
        self._check_callbacks()
        self._settle_callbacks()
        self._settle_module()

    def on_batch_start(self) -> None:
        """A training batch begins; its phase has been decided."""
        if self._phases is None and not self.session.module.automatic_optimization:
            self._listen()
        phases = [member.phase for member in self._schedules()]
        if phases != self._phases:
            self._has_changed = self._phases is not None
            self._phases = phases
            self._watch.begin(self.session.trainer.optimizers)
            if self._graphs is not None:
                self._graphs.begin()

    def on_before_step(self, optimizer: Optimizer) -> None:
        """An optimizer is about to step."""
        self._watch.check(optimizer, self.session.module)

    def on_batch_end(self) -> None:
        """A training batch has ended."""
        self._check_steps_are_seen()
        if not self._has_changed or self._graphs is None:
            return
        self._has_changed = False
        line = self._graphs.line()
        if line and any(getattr(member, "verbose", False) for member in self.session.members):
            self.session.module.print(line)

    def explain(self, exception: BaseException) -> None:
        """Add what is known here to torch's error about a loss that nothing trainable contributes to."""
        if "does not require grad" not in str(exception) or not hasattr(exception, "add_note"):
            return
        with untoggled(self.session.module):
            for number, optimizer in enumerate(self.session.trainer.optimizers, start=1):
                if not any(p.requires_grad for group in optimizer.param_groups for p in group["params"]):
                    exception.add_note(
                        f"All parameters of optimizer {number} ({type(optimizer).__name__}) are frozen at this point "
                        f"of the run. Skip its turn while its loss does not require grad, or give each phase "
                        f"something of it to train."
                    )

    def _listen(self) -> None:
        # A module that optimizes by hand may step an optimizer without Lightning, and then no callback is called.
        rates = self.session.rates
        for optimizer in self.session.trainer.optimizers:
            if rates.base_of(optimizer) is not None and hasattr(optimizer, "register_step_pre_hook"):
                self.session.at_close(optimizer.register_step_pre_hook(lambda *_: rates.write()).remove)

    def _check_steps_are_seen(self) -> None:
        if self.session.module.automatic_optimization or self.session.trainer.global_step:
            return
        for member in self._schedules():
            triggers = [phase.until for phase in member.plan if _counts_steps(phase.until)]
            if member.steps_taken and triggers:
                raise ConfigurationError(
                    f"{type(member).__name__} waits for {triggers[0]}, but {type(self.session.module).__name__} steps "
                    f"its optimizers without Lightning, so Trainer.global_step stands still. Step what "
                    f"self.optimizers() returns, without use_pl_optimizer=False, or use EpochTrigger."
                )

    def _schedules(self) -> list[Any]:
        return [member for member in self.session.members if hasattr(member, "freezes")]

    def _freezes_anything(self) -> bool:
        return any(hasattr(member, "frozen_eval") for member in self.session.members)

    def _check_callbacks(self) -> None:
        for callback in _callbacks(self.session):
            if isinstance(callback, StochasticWeightAveraging):
                self._check_batch_norm(callback)
            if isinstance(callback, _WEIGHT_AVERAGING):
                self._check_best_weights(callback)

    def _check_batch_norm(self, averaging: Callback) -> None:
        quiet: dict[Module, None] = dict.fromkeys(self.session.holds.modules())
        for member in self._schedules():
            quiet.update({module: None for _, modules in member.freezes for module in modules})
        names = [n for n, m in self.session.module.named_modules() if m in quiet and isinstance(m, _BatchNorm)]
        if names:
            raise ConfigurationError(
                f"{type(averaging).__name__} resets the statistics of every BatchNorm layer at the end, and computes "
                f"them anew in train mode; {len(names)} frozen ones (such as {names[0]}) are in eval mode and would "
                f"be left without any. Use Lightning's WeightAveraging instead, which averages the statistics, or set "
                f"frozen_eval=False."
            )

    def _check_best_weights(self, averaging: Callback) -> None:
        for member in self._schedules():
            if member.restore_best:
                raise ConfigurationError(
                    f"{type(averaging).__name__} validates averaged weights, so {type(member).__name__}("
                    f"restore_best=True) would judge those and go back to others. Remove one of them; ModelCheckpoint "
                    f"keeps the best averaged weights of the run."
                )

    def _settle_callbacks(self) -> None:
        session = self.session
        for callback in _callbacks(session):
            if isinstance(callback, StochasticWeightAveraging):
                session.at_close(keep_layer_rates(callback, session.rates))
            if isinstance(callback, BatchSizeFinder):
                session.at_close(measure_the_largest_phase(callback, session))
            if isinstance(callback, LearningRateFinder):
                session.at_close(find_the_users_rate(callback, session))

    def _settle_module(self) -> None:
        session = self.session
        if not self._freezes_anything():
            return
        self._check_gradients_pass()
        for undo in (*make_non_reentrant(session.module), *release_inputs(session.module)):
            session.at_close(undo)
        session.at_close(self._watch.install())
        phases = sum(len(member.plan) for member in self._schedules())
        if phases > 1:
            # Also where nothing looks compiled: a step may call a compiled function, or the module compile itself.
            self._graphs = GraphCount()
            session.at_close(raise_limits(phases))
        self._warn_of_input_grads()

    def _ever_trains(self) -> set[Parameter]:
        holds = self.session.holds
        found = {parameter for parameter in self.session.module.parameters() if parameter.requires_grad}
        for member in self._schedules():
            for frozen, _ in member.freezes:
                rest = {p for layer in member.stack for p in layer.parameters()} - set(frozen)
                found |= {p for p in rest if holds.can_train(p, member)}
        return found

    def _check_gradients_pass(self) -> None:
        barrier = find_barrier(self.session.stack, self._ever_trains())
        if barrier is not None:
            raise ConfigurationError(
                f"{barrier.module} is quantised, and no gradient passes through it: {barrier.parameter}, which shall "
                f"train, would get none, or not all of it. Keep everything up to layer {barrier.layer} frozen: "
                f"LayerFreezing({','.join(barrier.layers)!r}), beside a schedule or by itself."
            )

    def _warn_of_input_grads(self) -> None:
        bottom = [p for layer in self.session.stack.layers[:2] for p in layer.parameters()]
        if not bottom or any(p.requires_grad for p in bottom):
            return
        for model in models_with_input_grads(self.session.module):
            rank_zero_warn(
                f"enable_input_require_grads() has been called on {type(model).__name__}, so backward runs through its "
                f"frozen layers too, and freezing them saves little time. If nothing needs the gradient of the "
                f"embeddings, call disable_input_require_grads() on it."
            )


def _counts_steps(trigger: Trigger | None) -> bool:
    return any(isinstance(part, StepTrigger) for part in getattr(trigger, "triggers", (trigger,)))


def _callbacks(session: Session) -> list[Callback]:
    callbacks: list[Callback] = session.trainer.callbacks  # type: ignore[attr-defined]
    return callbacks
