"""Spectrum: the weight matrices with the highest signal-to-noise ratio train."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_freeze.arguments import check_arguments
from lightning_freeze.callbacks.layer_callback import Groups
from lightning_freeze.distributed import whole
from lightning_freeze.errors import ConfigurationError
from lightning_freeze.layers import LayerStack
from lightning_freeze.session.session import Session
from lightning_freeze.strategies.dynamic.statistics import Statistics
from lightning_freeze.strategies.dynamic.turns import TurnByTurn


def signal_to_noise(matrix: Tensor) -> float:
    """The sum of the singular values above the noise, over that of the others, over the largest one.

    What random noise alone would give is the upper edge of the Marchenko-Pastur distribution, for a standard deviation
    that is estimated from the interquartile range of the singular values.

    Args:
        matrix: A weight matrix.

    Returns:
        The ratio, 0 or more; infinite for a matrix without noise.
    """
    values = torch.linalg.svdvals(matrix.detach().to(torch.promote_types(matrix.dtype, torch.float32)))
    deviation = (torch.quantile(values, 0.75) - torch.quantile(values, 0.25)) / 1.349
    threshold = deviation * (1 + math.sqrt(min(matrix.shape) / max(matrix.shape)))
    signal, noise = float(values[values > threshold].sum()), float(values[values <= threshold].sum())
    if not signal:
        return 0.0
    # As published, a matrix all of whose values are signal has a noise of 1.
    noise = noise if bool((values <= threshold).any()) else 1.0
    return signal / noise / float(values[0]) if noise else math.inf


def highest(ratios: Mapping[str, Mapping[str, float]], top_percent: float) -> list[str]:
    """The matrices with the highest ratios of each type.

    Args:
        ratios: The ratio of each matrix, by its full name, by type.
        top_percent: How many of each type, in percent, rounded down.
    """
    found = []
    for matrices in ratios.values():
        ranked = sorted(matrices, key=lambda name: matrices[name], reverse=True)
        found += ranked[: int(len(ranked) * top_percent / 100)]
    return found


class SpectrumFreezing(TurnByTurn):
    """Trains the weight matrices with the highest signal-to-noise ratio of each type, and freezes the rest (Spectrum).

    Spectrum (Hartford et al., "Spectrum: Targeted Training on Signal to Noise Ratio", 2024, arXiv:2406.06623) needs no
    data: the singular values of a matrix are compared with those of random noise. Matrices of one type, such as
    ``self_attn.q_proj`` of all blocks, are compared with each other. Biases train with their matrix; norms stay frozen.

    The choice is made once, when the fit begins, from the weights that the module has then. A resumed run keeps it.

    Args:
        top_percent: How many of the matrices of each type train, in percent, above 0 and at most 100; 50 in the
            published code.
        layers: Selector of the blocks whose matrices are compared; all by default.
        embeddings: Whether the embeddings train too, as published. Backward then runs through every block.
        head: Whether the head trains too, as published.
        groups: See :class:`PhasedFineTuning`.
        frozen_eval: See :class:`PhasedFineTuning`.
        verbose: See :class:`DynamicFreezing`.

    Raises:
        ConfigurationError: If ``top_percent`` is out of range or chooses nothing, or the weights do not exist yet.
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
    ) -> None:
        check_arguments(SpectrumFreezing, locals())
        if not 0 < top_percent <= 100:
            raise ConfigurationError(
                f"SpectrumFreezing(top_percent={top_percent!r}): expected a number above 0 and at most 100."
            )
        self.top_percent = top_percent
        self.matrices: list[str] = []
        always = ",".join([*(["embeddings"] if embeddings else []), *(["head"] if head else [])])
        super().__init__(None, layers, always or None, True, groups, frozen_eval, verbose)

    def prepare(self, session: Session) -> None:  # noqa: D102
        found = highest(self.ratios(self.stack), self.top_percent)
        if not found:
            raise ConfigurationError(
                f"SpectrumFreezing(top_percent={self.top_percent!r}) chooses no weight matrix of "
                f"{self.layers_to_choose!r}: expected a higher number, or more blocks."
            )
        # Machines of different kinds may compute the last digits of a singular value differently.
        self.matrices = session.trainer.strategy.broadcast(found)
        super().prepare(session)

    def ratios(self, stack: LayerStack) -> dict[str, dict[str, float]]:
        """The signal-to-noise ratio of each weight matrix, by its full name, by type; must be called on all ranks."""
        found: dict[str, dict[str, float]] = {}
        for layer in (stack[name] for name in self.choices(stack)):
            for name, parameter in layer.named_parameters():
                if parameter.dim() != 2 or not parameter.is_floating_point():
                    continue
                if parameter.is_meta:
                    raise ConfigurationError(
                        f"SpectrumFreezing reads the weights when the fit begins, and {name} has none yet: it is on "
                        f"the meta device. Load the weights before, in __init__ or configure_model."
                    )
                prefix = next((p for p in layer.prefixes if name.startswith(f"{p}.")), "")
                kind = f"{layer.tower}:{name[len(prefix) :]}"
                found.setdefault(kind, {})[name] = signal_to_noise(whole(parameter.detach()))
        return found

    def choose(self, stack: LayerStack, turn: int, statistics: Statistics) -> Sequence[str]:  # noqa: D102
        names = stack.parameter_names
        biases = [name[: -len("weight")] + "bias" for name in self.matrices if name.endswith("weight")]
        return [*self.matrices, *(name for name in biases if name in names)]

    def preview(self, stack: LayerStack) -> Sequence[Sequence[str]]:  # noqa: D102
        return [self.choose(stack, 0, Statistics())]

    def turn_length(self) -> int:  # noqa: D102
        return sys.maxsize  # there is one turn

    def __repr__(self) -> str:
        options = f"layers={self.layers_to_choose!r}, always={self.always!r}"
        return f"SpectrumFreezing(top_percent={self.top_percent!r}, {options})"
