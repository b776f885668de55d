"""Handles other callbacks in a run, and changes that were made to the module before the fit.

Each combination either works or is refused at the start with one message that says what to do.
"""

from __future__ import annotations

from lightning.pytorch.callbacks import BatchSizeFinder, EarlyStopping, LearningRateFinder
from torch.optim import Optimizer

from lightning_freeze.compatibility import checks
from lightning_freeze.compatibility.activation_checkpointing import ReentrantWatch, make_non_reentrant, release_inputs
from lightning_freeze.compatibility.compile import GraphCount, raise_limits
from lightning_freeze.compatibility.early_stopping import PatienceGuard
from lightning_freeze.compatibility.nested_tensors import keep_padded_in_training
from lightning_freeze.compatibility.tuner import find_the_users_rate, measure_the_largest_phase
from lightning_freeze.namespaces import either
from lightning_freeze.session.observer import Observer, PhaseChange
from lightning_freeze.session.session import Session
from lightning_freeze.session.toggle_optimizer import untoggled


class Compatibility(Observer):
    """Makes the rest of a run work beside frozen layers.

    Args:
        session: The running fit, when all of its members have joined and the strategy has not wrapped the module yet.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._freezes = any(member.freezes_layers for member in session.members)
        self._reentrant = ReentrantWatch()
        self._graphs: GraphCount | None = None
        self._guards: list[PatienceGuard] = []
        self._is_first_batch = True
        self._has_new_phase = False
        checks.check_callbacks(session)
        self._adapt_callbacks()
        if self._freezes:
            self._adapt_module()

    def _adapt_callbacks(self) -> None:
        session = self._session
        for callback in checks.callbacks_of(session):
            if isinstance(callback, either(BatchSizeFinder)):
                session.at_close(measure_the_largest_phase(callback, session))
            if isinstance(callback, either(LearningRateFinder)):
                session.at_close(find_the_users_rate(callback, session))

    def _adapt_module(self) -> None:
        session = self._session
        checks.check_gradients_pass(session)
        for adapt in (make_non_reentrant, release_inputs, keep_padded_in_training):
            for undo in adapt(session.module):
                session.at_close(undo)
        session.at_close(self._reentrant.install())
        phases = sum(len(schedule.plan) for schedule in session.schedules)
        if phases > 1:
            # Even if nothing is compiled yet: a step may call a compiled function, or the module may compile itself.
            self._graphs = GraphCount()
            session.at_close(raise_limits(phases))
        checks.warn_of_input_grads(session)

    def start_fit(self) -> None:  # noqa: D102
        session = self._session
        if self._freezes:
            checks.check_optimizers(session)
        guarded = [schedule for schedule in session.schedules if getattr(schedule.owner, "guard_early_stopping", False)]
        if guarded and not self._guards:
            for stopping in [c for c in checks.callbacks_of(session) if isinstance(c, either(EarlyStopping))]:
                guard = PatienceGuard(stopping, lambda: any(s.phase < len(s.plan) - 1 for s in guarded))
                guard.install()
                session.at_close(guard.remove)
                self._guards.append(guard)

    def start_batch(self) -> None:  # noqa: D102
        if self._is_first_batch:
            self._is_first_batch = False
            self._reentrant.begin(self._session.trainer.optimizers)

    def before_step(self, optimizer: Optimizer) -> None:  # noqa: D102
        self._reentrant.check(optimizer, self._session.module)

    def end_batch(self, batch_idx: int) -> None:  # noqa: D102
        checks.check_steps_are_counted(self._session)
        if not self._has_new_phase or self._graphs is None:
            return
        self._has_new_phase = False
        line = self._graphs.line()
        if line and any(member.verbose for member in self._session.members):
            self._session.module.print(line)

    def change_phase(self, change: PhaseChange) -> None:  # noqa: D102
        self._has_new_phase = True
        self._reentrant.begin(self._session.trainer.optimizers)
        if self._graphs is not None:
            self._graphs.begin()
        for guard in self._guards:
            guard.restart()

    def fail(self, exception: BaseException) -> None:
        """Explain torch's error about a loss that does not depend on anything trainable."""
        if "does not require grad" not in str(exception) or not hasattr(exception, "add_note"):
            return
        with untoggled(self._session.module):
            for number, optimizer in enumerate(self._session.trainer.optimizers, start=1):
                if not any(p.requires_grad for group in optimizer.param_groups for p in group["params"]):
                    exception.add_note(
                        f"All parameters of optimizer {number} ({type(optimizer).__name__}) are frozen at this point "
                        f"of the run. Skip its turn while its loss does not require grad, or give each phase "
                        f"something of it to train."
                    )
