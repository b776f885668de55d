"""Pre-trained layers that train from the first step at a rate that only a new head needs."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch.nn import Parameter
from torch.optim import NAdam, Optimizer, RAdam
from torch.optim.adam import Adam
from torch.optim.adamax import Adamax
from torch.optim.adamw import AdamW

from lightning_freeze.checkpoints.loaded import is_loaded
from lightning_freeze.diagnostics.new_layers import NewLayer
from lightning_freeze.layers.wording import spans
from lightning_freeze.run_warnings.record import warn_in_run
from lightning_freeze.session.observer import Observer
from lightning_freeze.session.session import Session

#: Ten times the highest rate that BERT's authors recommend for fine-tuning with Adam (5e-5), and a usual one for the
#: training of new layers.
TOO_HIGH = 5e-4

_ADAMS = (Adam, AdamW, NAdam, RAdam, Adamax)


def is_too_high_for_both(pretrained: Sequence[float], new: Sequence[float]) -> bool:
    """Whether pre-trained and new layers share one rate, and it is one for new layers.

    Args:
        pretrained: The rates of Adam for pre-trained blocks.
        new: Those for new layers.
    """
    rates = [*pretrained, *new]
    is_one = bool(pretrained and new) and all(math.isclose(rate, rates[0], rel_tol=1e-6) for rate in rates)
    return is_one and rates[0] >= TOO_HIGH


class OneRate(Observer):
    """Compares rates in a run that neither freezes a part of the time nor scales rates; warns once.

    Args:
        session: The running fit, when all of its members have joined.
        new: The layers that are at their random initialisation.
    """

    def __init__(self, session: Session, new: list[NewLayer]) -> None:
        self._session = session
        self._new = {p for layer in new for p in layer.module.parameters(recurse=False)}
        self._blocks: list[tuple[str, Parameter]] = []
        self._can_tell = bool(new) and not session.schedules and not session.rates.sources
        self._is_over = True  # until training begins; finders try rates out before

    def start_training(self) -> None:  # noqa: D102
        if self._can_tell and not self._session.trainer.global_step:
            # Whole blocks, as the weights of norms and biases alone take higher rates well.
            blocks = [(layer.name, p) for layer in self._session.stack.blocks for p in layer.parameters()]
            self._blocks = [(name, p) for name, p in blocks if is_loaded(p) and p.ndim > 1 and p.requires_grad]
            self._is_over = not self._blocks

    def end_batch(self, batch_idx: int) -> None:
        """Compare the rates; in each batch, as a warm-up may still raise them."""
        if self._is_over:
            return
        rates: dict[Parameter, float] = {}
        for optimizer in self._session.trainer.optimizers:
            if isinstance(optimizer, _ADAMS):
                rates.update(self._rates(optimizer))
        blocks = [rates[p] for _, p in self._blocks if p in rates]
        new = [rates[p] for p in self._new if p in rates and p.requires_grad]
        if is_too_high_for_both(blocks, new):
            self._is_over = True
            self._warn(new[0])

    def _rates(self, optimizer: Optimizer) -> dict[Parameter, float]:
        return self._session.rates.rates_of(optimizer)

    def _warn(self, rate: float) -> None:
        stack = self._session.stack
        names = list(dict.fromkeys(name for name, _ in self._blocks))
        warn_in_run(
            self._session.trainer,
            f"The pre-trained layers {spans(names, stack.names)} train at the same rate as a newly initialised head, "
            f"{rate:.3g}, which is usual for new layers and destroys pre-trained ones. Lower it to 5e-5 or so and give "
            f"the head more (DiscriminativeLR(factors={{'head': 10}})), or train the head first (GradualUnfreezing()).",
        )
