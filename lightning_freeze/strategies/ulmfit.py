"""ULMFiT: gradual unfreezing, discriminative rates and slanted triangular rates together."""

from __future__ import annotations

import math
from collections.abc import Hashable

from lightning.pytorch import LightningModule, Trainer
from torch.nn import Parameter

from lightning_freeze.arguments import check_arguments
from lightning_freeze.callbacks.discriminative_lr import DiscriminativeLR
from lightning_freeze.callbacks.gradual_unfreezing import GradualUnfreezing
from lightning_freeze.callbacks.layer_callback import Groups
from lightning_freeze.errors import ConfigurationError
from lightning_freeze.schedule.triggers import EpochTrigger, Trigger
from lightning_freeze.session.session import Session


def slanted_triangular(step: int, steps: int, cut_frac: float = 0.1, ratio: float = 32.0) -> float:
    """The factor on the highest learning rate at one step of a slanted triangular schedule.

    It reaches its lowest value when the run ends. Equation 3 of the paper divides by ``cut * (1 / cut_frac - 1)``. That
    is the same where ``steps * cut_frac`` is a whole number. Elsewhere the rate would be at its lowest earlier.

    Args:
        step: The optimizer step, from 0 on.
        steps: The number of steps of the whole run.
        cut_frac: Share of the steps in which the rate rises.
        ratio: How many times lower than the highest rate the lowest one is.
    """
    cut = max(1, math.floor(steps * cut_frac))
    share = step / cut if step < cut else 1 - (step - cut) / max(1, steps - cut)
    return (1 + max(0.0, share) * (ratio - 1)) / ratio


class ULMFiT(GradualUnfreezing):
    """Unfreezes from the top down, at rates that fall with the depth, under a slanted triangular schedule.

    The recipe of ULMFiT (Howard and Ruder, "Universal Language Model Fine-tuning for Text Classification", ACL 2018,
    arXiv:1801.06146) for fine-tuning a classifier. The rate of a layer is the user's rate, divided by ``factor`` for
    each layer above it, times the slanted triangular schedule: a short linear rise and a long linear fall. Use it with
    an optimizer without a scheduler, which would multiply with this schedule; ``TransformerModule`` leaves its default
    one out. The rate of the optimizer is the highest rate of the head.

    Args:
        trigger: When the next layer is unfrozen; with each epoch in the paper.
        factor: By how much the rate of a layer is lower than that of the layer above, 1 or more; 2.6 in the paper.
        cut_frac: Share of all optimizer steps in which the rates rise, between 0 and 1; 0.1 in the paper.
        ratio: How many times lower than the highest rate the lowest one is, 1 or more; 32 in the paper. 1 turns the
            slanted triangular schedule off.
        start: See :class:`GradualUnfreezing`.
        layers_per_phase: See :class:`GradualUnfreezing`.
        stop: See :class:`GradualUnfreezing`; ``"0"`` leaves the embeddings out.
        groups: See :class:`PhasedFineTuning`.
        frozen_eval: See :class:`PhasedFineTuning`.
        verbose: See :class:`PhasedFineTuning`.
        save_frozen: See :class:`PhasedFineTuning`.

    Raises:
        ConfigurationError: If a number is out of range, a ``DiscriminativeLR`` scales the rates as well, the length of
            the run is unknown, or the module optimizes manually.

    Example:
        >>> ULMFiT(stop="0")
        ULMFiT(trigger=EpochTrigger(1), start='head', layers_per_phase=1, stop='0', factor=2.6)
    """

    does_nothing_but_phases = False

    def __init__(
        self,
        trigger: Trigger = EpochTrigger(1),  # noqa: B008  (triggers are immutable)
        factor: float = 2.6,
        cut_frac: float = 0.1,
        ratio: float = 32.0,
        start: str = "head",
        layers_per_phase: int = 1,
        stop: str | None = None,
        groups: Groups | None = None,
        frozen_eval: bool = True,
        verbose: bool = True,
        save_frozen: bool = True,
    ) -> None:
        check_arguments(ULMFiT, locals())
        for name, value in (("factor", factor), ("ratio", ratio)):
            if not 1 <= value < math.inf:
                raise ConfigurationError(f"ULMFiT({name}={value!r}): expected a finite number, 1 or more.")
        if not 0 < cut_frac < 1:
            raise ConfigurationError(f"ULMFiT(cut_frac={cut_frac!r}): expected a number between 0 and 1, such as 0.1.")
        super().__init__(
            trigger,
            start,
            layers_per_phase,
            stop,
            groups=groups,
            frozen_eval=frozen_eval,
            verbose=verbose,
            save_frozen=save_frozen,
        )
        self.factor = factor
        self.cut_frac = cut_frac
        self.ratio = ratio
        self.has_lr_schedule = ratio > 1
        self._steps: int | None = None

    def prepare(self, session: Session) -> None:  # noqa: D102
        super().prepare(session)
        session.rates.sources.append(self)

    def check(self, session: Session) -> None:  # noqa: D102
        super().check(session)
        if any(isinstance(member, DiscriminativeLR) for member in session.members):
            raise ConfigurationError("ULMFiT scales the rate of each layer itself; leave DiscriminativeLR out.")
        if self.ratio > 1 and not session.module.automatic_optimization:
            raise ConfigurationError(
                "ULMFiT's slanted triangular schedule counts the steps of one optimizer, and this module optimizes "
                "manually. Use GradualUnfreezing with DiscriminativeLR(1 / 2.6), or set ratio=1."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        # Not earlier: asking for the number of steps sets up the data loaders, and a stateful loader that exists before
        # the checkpoint is restored does not get its state back.
        steps = trainer.estimated_stepping_batches
        if self.ratio > 1 and (math.isinf(steps) or steps < 1):
            raise ConfigurationError(
                "ULMFiT's slanted triangular schedule needs the length of the run: give Trainer(max_epochs=...) or "
                "max_steps=..., or set ratio=1."
            )
        self._steps = int(steps) if self.ratio > 1 else None
        super().on_train_start(trainer, pl_module)

    @property
    def owner(self) -> ULMFiT:  # noqa: D102
        return self

    def rate_key(self, parameter: Parameter) -> Hashable:  # noqa: D102
        layer = self.stack.layer_of(parameter)
        return () if layer is None or layer.is_bystander else layer.height

    def rate_factor(self, key: Hashable) -> float:  # noqa: D102
        height = key if isinstance(key, int) else 0
        return float(self.factor**-height) * self._slant()

    def _slant(self) -> float:
        if self._steps is None or self._session is None:
            return 1.0
        return slanted_triangular(self._session.trainer.global_step, self._steps, self.cut_frac, self.ratio)

    def __repr__(self) -> str:
        return f"{super().__repr__().replace('GradualUnfreezing(', 'ULMFiT(')[:-1]}, factor={self.factor!r})"
