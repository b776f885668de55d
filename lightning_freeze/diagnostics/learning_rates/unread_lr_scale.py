"""Parameter groups with an ``lr_scale`` that nothing reads: the rate per layer that they ask for has no effect.

timm's ``param_groups_layer_decay`` only writes ``lr_scale`` into the groups. timm's own schedulers multiply by it;
torch's optimizers and schedulers, and Lightning, ignore it.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from torch.optim import Optimizer

from lightning_freeze.optimizers.driven_optimizers import driven_by
from lightning_freeze.run_warnings.record import warn_in_run
from lightning_freeze.session.observer import Observer
from lightning_freeze.session.session import Session

#: Batches with a positive rate after which whatever scales the rates has done so.
ENOUGH = 2


class ScaledGroup(NamedTuple):
    """The learning rate of a parameter group, and the ``lr_scale`` that it carries."""

    lr: float
    scale: float


def is_scale_unread(groups: Sequence[ScaledGroup]) -> bool | None:
    """Whether groups with different scales have one and the same learning rate.

    Args:
        groups: The groups that carry an ``lr_scale``.

    Returns:
        ``None`` if it cannot be told: there is only one scale, or a rate is 0, as in a warm-up.
    """
    if len({group.scale for group in groups}) < 2 or any(group.lr <= 0 for group in groups):
        return None
    return all(math.isclose(group.lr, groups[0].lr, rel_tol=1e-9) for group in groups)


def reads_scale(objects: Iterable[object]) -> bool:
    """Whether the source of any object's class names ``lr_scale``, so that it may use it where no rate shows it."""
    return any("lr_scale" in _source(cls) for each in objects for cls in type(each).__mro__[:-1])


class UnreadScale(Observer):
    """Compares the rates of groups with different scales after the first batches of a run, and warns once.

    Args:
        session: The running fit.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._seen = 0
        self._is_over = True  # until training begins; finders try rates out before

    def start_training(self) -> None:  # noqa: D102
        trainer = self._session.trainer
        has_scales = any(len({g.scale for g in _scaled_groups(optimizer)}) > 1 for optimizer in trainer.optimizers)
        self._is_over = not has_scales or trainer.global_step > 0  # a resumed run is not told again

    def end_batch(self, batch_idx: int) -> None:  # noqa: D102
        if self._is_over:
            return
        unread = [o for o in self._session.trainer.optimizers if is_scale_unread(_scaled_groups(o))]
        if not unread:
            return
        self._seen += 1
        if self._seen >= ENOUGH:
            self._is_over = True
            self._judge(unread)

    def _judge(self, optimizers: Sequence[Optimizer]) -> None:
        trainer = self._session.trainer
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        for optimizer in optimizers:
            if not reads_scale([optimizer, *driven_by(optimizer), *schedulers]):
                scales = [group.scale for group in _scaled_groups(optimizer)]
                warn_in_run(
                    trainer,
                    f"The parameter groups of {type(optimizer).__name__} carry lr_scale from {min(scales):.3g} to "
                    f"{max(scales):.3g}, but nothing reads it: all of them train at the same rate. Leave the groups "
                    f"out and use DiscriminativeLR(decay=...), or a scheduler of timm, which multiplies by lr_scale.",
                )
                return


def _scaled_groups(optimizer: Optimizer) -> list[ScaledGroup]:
    groups = [group for group in optimizer.param_groups if "lr_scale" in group and group.get("lr") is not None]
    return [ScaledGroup(float(group["lr"]), float(group["lr_scale"])) for group in groups]


def _source(cls: Any) -> str:
    try:
        return inspect.getsource(cls)
    except (OSError, TypeError):
        return ""
