"""Discriminative (layer-wise) learning rates."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Any

from torch.nn import Parameter

from lightning_freeze.arguments import check_arguments
from lightning_freeze.callbacks.layer_callback import Groups, LayerCallback
from lightning_freeze.errors import ConfigurationError
from lightning_freeze.schedule.phases import is_factor
from lightning_freeze.session.session import Session


class DiscriminativeLR(LayerCallback):
    """Gives each layer its own learning rate, lower ones to the layers nearer to the input.

    The rate of a layer is the user's rate, under the user's scheduler, times ``decay ** height``; the head (the top
    layer) has height 0, the block below it 1, and so on down to the embeddings. Towers side by side have heights of
    their own (see :attr:`Layer.height`). Discriminative rates are from ULMFiT
    (Howard and Ruder, 2018); their geometric case is the layer-wise learning rate decay of ELECTRA (Clark et al.,
    2020) and BEiT.

    Args:
        decay: Factor from one layer to the next one below, greater than 0; usual values lie between 0.65 and 0.95.
        factors: Factors of single layers relative to the user's rate, by selector, instead of the geometric ones:
            ``{"embeddings": 0.1, "head": 10}``. Later entries win over earlier ones.
        groups: An explicit, ordered map from layer name to module-name prefixes, instead of the layers that are found
            automatically. Parameters that the map leaves out keep the user's rate.
        verbose: Whether to print the table of layers.
        log_rates: Whether to log the learning rate of each layer, all factors and warm-ups included, to the trainer's
            loggers at every ``log_every_n_steps``, as ``lr-<optimizer>/<layer>``: ``lr-AdamW/head``, and
            ``lr-AdamW-1/head`` for a second ``AdamW``. Of a layer whose parameters have several rates it is the
            largest; of a frozen layer, the one it would train at. (``LearningRateMonitor`` logs the user's rates, to
            which the factors apply.)

    Raises:
        ConfigurationError: If a factor is negative or not finite, a selector matches nothing, or another
            ``DiscriminativeLR`` scales the same layers.
    """

    def __init__(
        self,
        decay: float = 0.9,
        factors: Mapping[str, float] | None = None,
        groups: Groups | None = None,
        verbose: bool = True,
        log_rates: bool = False,
    ) -> None:
        check_arguments(DiscriminativeLR, locals())
        super().__init__(groups=groups, verbose=verbose)
        if not 0 < decay < math.inf:
            raise ConfigurationError(
                f"DiscriminativeLR(decay={decay!r}): expected a number greater than 0, such as 0.9."
            )
        for selector, factor in (factors or {}).items():
            if not is_factor(factor):
                raise ConfigurationError(
                    f"DiscriminativeLR(factors={{{selector!r}: {factor!r}}}): expected a finite number, 0 or more."
                )
        self.decay = decay
        self.log_rates = log_rates
        self.factors = dict(factors or {})
        self._factors: dict[Parameter, float] = {}

    @property
    def state_key(self) -> str:
        """Tells two of these callbacks apart in a checkpoint."""
        return self._generate_state_key(decay=self.decay, factors=self.factors, groups=self.groups)

    def prepare(self, session: Session) -> None:  # noqa: D102
        self._factors = {
            parameter: self.decay**layer.height
            for layer in self.stack
            if not layer.is_bystander
            for parameter in layer.parameters()
        }
        for selector, factor in self.factors.items():
            self._factors.update(dict.fromkeys(self.stack.select(selector).parameters, float(factor)))
        session.rates.sources.append(self)

    def check(self, session: Session) -> None:  # noqa: D102
        for other in session.members:
            if (
                isinstance(other, DiscriminativeLR)
                and other is not self
                and other._factors.keys() & self._factors.keys()
            ):
                raise ConfigurationError(
                    "Two DiscriminativeLR callbacks scale the learning rates of the same layers; keep one of them, or "
                    "give them groups that do not overlap."
                )

    @property
    def owner(self) -> DiscriminativeLR:  # noqa: D102
        return self

    def rate_key(self, parameter: Parameter) -> Hashable:  # noqa: D102
        factor = self._factors.get(parameter, 1.0)
        return () if factor == 1 else factor

    def rate_factor(self, key: Hashable) -> float:  # noqa: D102
        return key if isinstance(key, float) else 1.0

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return {"rates": self.rates_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # noqa: D102
        self._rates = state_dict["rates"]

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_factors": {}}
