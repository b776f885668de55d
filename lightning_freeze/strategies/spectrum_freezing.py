"""Spectrum: the weight matrices with the highest signal-to-noise ratio train."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from lightning_freeze.arguments import check_arguments
from lightning_freeze.callbacks.layer_callback import Groups
from lightning_freeze.distributed import whole
from lightning_freeze.errors import ConfigurationError
from lightning_freeze.layers import LayerStack
from lightning_freeze.session.session import Session
from lightning_freeze.strategies.candidates import with_ends
from lightning_freeze.strategies.dynamic.statistics import Statistics
from lightning_freeze.strategies.dynamic.turns import TurnByTurn
from lightning_freeze.strategies.signal_to_noise import highest, signal_to_noise


class SpectrumFreezing(TurnByTurn):
    """Trains the weight matrices with the highest signal-to-noise ratio of each type, and freezes the rest (Spectrum).

    Spectrum (Hartford et al., "Spectrum: Targeted Training on Signal to Noise Ratio", 2024, arXiv:2406.06623) needs no
    data: the singular values of a matrix are compared with those of random noise. Matrices of one type, such as
    ``self_attn.q_proj`` of all blocks, are compared with each other. Biases train with their matrix; norms stay frozen.

    The choice is made once, from the weights at the start of the fit. A resumed run keeps it.

    Args:
        top_percent: How many of the matrices of each type train, in percent, above 0 and at most 100; 50 in the
            published code.
        layers: Selector of the blocks whose matrices are compared; all by default.
        embeddings: Whether the embeddings train too, as published. Backward then runs through every block.
        head: Whether the head trains too, as published.
        groups: See :class:`PhasedFineTuning`.
        frozen_eval: See :class:`PhasedFineTuning`.
        verbose: See :class:`DynamicFreezing`.
        save_frozen: See :class:`PhasedFineTuning`.

    Raises:
        ConfigurationError: If ``top_percent`` is out of range or chooses nothing, or there are no weights.
    """

    def __init__(
        self,
        top_percent: float = 50.0,
        layers: str = ":",
        embeddings: bool = True,
        head: bool = True,
        groups: Groups | None = None,
        frozen_eval: bool = True,
        verbose: bool = True,
        save_frozen: bool = True,
    ) -> None:
        check_arguments(SpectrumFreezing, locals())
        if not 0 < top_percent <= 100:
            raise ConfigurationError(
                f"SpectrumFreezing(top_percent={top_percent!r}): expected a number above 0 and at most 100."
            )
        self.top_percent = top_percent
        self._found: list[str] = []
        self._is_provisional = False
        always = with_ends("", embeddings, head)
        super().__init__(None, layers, always or None, True, groups, frozen_eval, verbose, save_frozen)

    @property
    def matrices(self) -> list[str]:
        """Full names of the matrices that train in the fit, or trained in the last one."""
        return [name for name in self._runner.chosen if not name.endswith("bias")]

    def prepare(self, session: Session) -> None:  # noqa: D102
        self._decide(session.trainer)
        super().prepare(session)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        if self._is_provisional and not self._runner.progress.starts:
            self._decide(trainer)
            self._runner.choose_again()
        super().on_train_start(trainer, pl_module)

    def on_train_batch_start(  # noqa: D102
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._is_provisional and not self._runner.progress.starts:
            raise ConfigurationError(
                f"SpectrumFreezing compares weights, and those of {type(pl_module).__name__} are on the meta device. "
                f"Load them in __init__ or configure_model."
            )
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)

    def _decide(self, trainer: Trainer) -> None:
        ratios = self.ratios(self.stack)
        # Without weights, as in a plan, the highest blocks stand for those that will be chosen.
        self._is_provisional = any(math.isnan(ratio) for matrices in ratios.values() for ratio in matrices.values())
        if self._is_provisional:
            ratios = {kind: {name: i for i, name in enumerate(matrices)} for kind, matrices in ratios.items()}
        found = highest(ratios, self.top_percent)
        if not found:
            raise ConfigurationError(
                f"SpectrumFreezing(top_percent={self.top_percent!r}) chooses no weight matrix of "
                f"{self.layers_to_choose!r}: expected a higher number, or more blocks."
            )
        # Machines of different kinds may compute the last digits of a singular value differently.
        self._found = trainer.strategy.broadcast(found)

    def ratios(self, stack: LayerStack) -> dict[str, dict[str, float]]:
        """The signal-to-noise ratio of each weight matrix, by its full name, by type; must be called on all ranks.

        NaN stands for the ratio of a matrix on the meta device.
        """
        found: dict[str, dict[str, float]] = {}
        for layer in (stack[name] for name in self.choices(stack)):
            for name, parameter in layer.named_parameters():
                if parameter.dim() == 2 and parameter.is_floating_point():
                    prefix = next((p for p in layer.prefixes if name.startswith(f"{p}.")), "")
                    ratio = math.nan if parameter.is_meta else signal_to_noise(whole(parameter.detach()))
                    found.setdefault(f"{layer.tower}:{name[len(prefix) :]}", {})[name] = ratio
        return found

    def choose(self, stack: LayerStack, turn: int, statistics: Statistics) -> Sequence[str]:  # noqa: D102
        names = stack.parameter_names
        biases = [name[: -len("weight")] + "bias" for name in self._found if name.endswith("weight")]
        return [*self._found, *(name for name in biases if name in names)]

    def preview(self, stack: LayerStack) -> Sequence[Sequence[str]]:  # noqa: D102
        return [self.choose(stack, 0, Statistics())]

    def turn_length(self) -> int:  # noqa: D102
        return sys.maxsize  # there is one turn

    @property
    def chooses_again(self) -> bool:  # noqa: D102
        return self._is_provisional

    def __repr__(self) -> str:
        options = f"layers={self.layers_to_choose!r}, always={self.always!r}"
        return f"SpectrumFreezing(top_percent={self.top_percent!r}, {options})"
