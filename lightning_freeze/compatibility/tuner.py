"""Lightning's batch size and learning rate finders beside frozen layers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder

from lightning_freeze.session.session import Session


def measure_the_largest_phase(finder: BatchSizeFinder, session: Session) -> Callable[[], None]:
    """Make a batch size finder measure with everything that ever trains, so that its result fits in every phase.

    It runs before the first phase, which trains the least and allows the largest batches.

    Args:
        finder: The callback.
        session: The running fit.

    Returns:
        A function that undoes it.
    """
    measure = finder.scale_batch_size

    def scale_batch_size(trainer: Trainer, pl_module: LightningModule) -> None:
        with _keeping_callbacks(trainer), _in_eval_mode(session), _all_phases(session):
            measure(trainer, pl_module)

    finder.scale_batch_size = scale_batch_size  # type: ignore[method-assign]
    return lambda: vars(finder).pop("scale_batch_size", None) and None


def find_the_users_rate(finder: LearningRateFinder, session: Session) -> Callable[[], None]:
    """Make a learning rate finder search for the rate of the user, which is then scaled by the factor of each layer.

    It may run before the first hook of any callback of this package.

    Args:
        finder: The callback.
        session: The running fit.

    Returns:
        A function that undoes it.
    """
    find = finder.lr_find

    def lr_find(trainer: Trainer, pl_module: LightningModule) -> None:
        if session.rates.sources:
            session.announcer.begin()
        with _keeping_callbacks(trainer), _in_eval_mode(session):
            find(trainer, pl_module)

    finder.lr_find = lr_find  # type: ignore[method-assign]
    return lambda: vars(finder).pop("lr_find", None) and None


@contextmanager
def _keeping_callbacks(trainer: Trainer) -> Iterator[None]:
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    try:
        yield
    except BaseException:
        # A finder that fails leaves the trainer without callbacks, so none of them would receive the exception.
        trainer.callbacks = callbacks  # type: ignore[attr-defined]
        raise


@contextmanager
def _in_eval_mode(session: Session) -> Iterator[None]:
    # No training batch has begun, so the frozen modules are not in eval mode yet.
    trained = [module for module in session.holds.modules() if module.training]
    session.holds.set_eval_mode()
    try:
        with warnings.catch_warnings():
            # Lightning finds them so when the finder's own loop starts.
            warnings.filterwarnings("ignore", message=".*in eval mode at the start of training")
            yield
    finally:
        for module in trained:
            module.training = True


@contextmanager
def _all_phases(session: Session) -> Iterator[None]:
    schedules = session.schedules
    for schedule in schedules:
        parameters = set.intersection(*(set(parameters) for parameters, _ in schedule.freezes))
        modules = [{id(module): module for module in modules} for _, modules in schedule.freezes]
        always = set.intersection(*(set(found) for found in modules))
        session.holds.hold(schedule.owner, parameters, [modules[0][key] for key in always])
    try:
        yield
    finally:
        for schedule in schedules:
            session.holds.hold(schedule.owner, *schedule.freezes[schedule.phase])
