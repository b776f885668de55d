"""Auto-RGN: learning rates in proportion to relative gradient norms."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from lightning_freeze.arguments import check_arguments
from lightning_freeze.callbacks.layer_callback import Groups, LayerCallback
from lightning_freeze.distributed import whole
from lightning_freeze.errors import ConfigurationError
from lightning_freeze.session.session import Session


def relative_factors(ratios: Mapping[str, float]) -> dict[str, float]:
    """The factor of each tensor: its relative gradient norm, divided by the largest one.

    Args:
        ratios: By name, the norm of the gradient divided by that of the weights; infinite for weights of zero, which
            get the largest factor and do not count as the largest ratio.
    """
    finite = [ratio for ratio in ratios.values() if ratio != math.inf]
    largest = max(finite, default=0.0)
    return {name: min(1.0, ratio / largest) if largest else 1.0 for name, ratio in ratios.items()}


class RelativeGradientLR(LayerCallback):
    """Gives each tensor a rate in proportion to how large its gradient is beside its weights (Auto-RGN).

    The factor of a tensor is ``||gradient|| / ||weights||``, averaged over the first ``batches`` optimizer steps of
    each epoch in which it has a gradient, and divided by the largest of all tensors, on the user's rate. So the tensors
    that the data want to change train at the full rate, and the others at lower ones (Lee et al., "Surgical Fine-Tuning
    Improves Adaptation to Distribution Shifts", ICLR 2023, arXiv:2210.11466). Tensors that are zero train at the full
    rate. All tensors are measured again when further ones begin to train. A step whose gradients are not finite, as a
    loss scaler skips it, is left out and does not count.

    The published code measures on extra passes before each epoch. Here the training gradients of the first steps are
    measured, so nothing is computed twice: the step that is measured already uses its own measurement. Between ranks,
    gradients are those that the strategy has averaged.

    Args:
        batches: How many optimizer steps are measured in each epoch, and when further tensors begin to train, 1 or
            more; 5 batches in the published code.
        groups: See :class:`DiscriminativeLR`.
        verbose: See :class:`DiscriminativeLR`.
        log_rates: See :class:`DiscriminativeLR`.

    Raises:
        ConfigurationError: If ``batches`` is not positive.
    """

    def __init__(
        self, batches: int = 5, groups: Groups | None = None, verbose: bool = True, log_rates: bool = False
    ) -> None:
        check_arguments(RelativeGradientLR, locals())
        super().__init__(groups=groups, verbose=verbose)
        if batches < 1:
            raise ConfigurationError(
                f"RelativeGradientLR(batches={batches!r}): expected a whole number of optimizer steps, 1 or more."
            )
        self.batches = batches
        self.log_rates = log_rates
        self.factors: dict[str, float] = {}
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}  # in how many steps each tensor has been measured
        self._trained: set[str] = set()
        self._epoch = -1
        self._names: dict[Parameter, str] = {}

    def prepare(self, session: Session) -> None:  # noqa: D102
        self.factors, self._sums, self._counts, self._trained, self._epoch = {}, {}, {}, set(), -1
        self._names = {
            parameter: name
            for layer in self.stack
            if not layer.is_bystander
            for name, parameter in layer.named_parameters()
        }
        session.rates.sources.append(self)

    def on_before_optimizer_step(  # noqa: D102
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        super().on_before_optimizer_step(trainer, pl_module, optimizer)
        named = {self._names[p]: p for group in optimizer.param_groups for p in group["params"] if p in self._names}
        trained = {name: parameter for name, parameter in named.items() if parameter.requires_grad}
        if trainer.current_epoch != self._epoch or trained.keys() - self._trained:
            self._epoch, self._sums, self._counts = trainer.current_epoch, {}, {}
        self._trained = (self._trained - named.keys()) | trained.keys()
        self._measure({name: p for name, p in trained.items() if self._counts.get(name, 0) < self.batches})

    def _measure(self, tensors: Mapping[str, Parameter]) -> None:
        norms = {name: _norm(p.grad) for name, p in tensors.items() if p.grad is not None}
        if not norms or not all(map(math.isfinite, norms.values())):
            return
        for name, norm in norms.items():
            size = _norm(tensors[name].detach())
            self._sums[name] = self._sums.get(name, 0.0) + (norm / size if size else math.inf)
            self._counts[name] = self._counts.get(name, 0) + 1
        self.factors = relative_factors({name: total / self._counts[name] for name, total in self._sums.items()})

    @property
    def owner(self) -> RelativeGradientLR:  # noqa: D102
        return self

    def rate_key(self, parameter: Parameter) -> Hashable:  # noqa: D102
        return self._names.get(parameter, ())

    def rate_factor(self, key: Hashable) -> float:  # noqa: D102
        return self.factors.get(str(key), 1.0)

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        own = {"factors": self.factors, "sums": self._sums, "counts": self._counts, "epoch": self._epoch}
        return {**own, "trained": sorted(self._trained), "rates": self.rates_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # noqa: D102
        self.factors, self._sums = dict(state_dict["factors"]), dict(state_dict["sums"])
        # Checkpoints of earlier versions have one count for all tensors.
        self._counts = dict(state_dict.get("counts", dict.fromkeys(self._sums, state_dict.get("measured", 0))))
        self._trained = set(state_dict.get("trained", self.factors))
        self._epoch, self._rates = state_dict["epoch"], state_dict["rates"]

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_names": {}}


def _norm(tensor: Tensor) -> float:
    wide = torch.promote_types(tensor.dtype, torch.float32)  # half precision would overflow
    return float(whole(torch.linalg.vector_norm(tensor.to(wide))))
