"""The outcome of a comparison of a fine-tuned model with the original."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from lightning_freeze.forgetting.features import Features
from lightning_freeze.forgetting.similarity import l2_distance, linear_cka, neighbour_agreement, ranking_correlation


@dataclass(frozen=True)
class LayerDrift:
    """How far the features of one layer have moved.

    Args:
        layer: Name of the layer.
        cka: Linear CKA with the original, from 0 to 1.
        l2: Mean Euclidean distance from the original.
        relative_l2: The same, divided by the mean norm of the original.
    """

    layer: str
    cka: float
    l2: float
    relative_l2: float


@dataclass(frozen=True)
class ForgettingResult:
    """What a fine-tuned model has kept of the original, on general text.

    Args:
        step: Number of optimizer steps at which it was measured.
        texts: Number of texts.
        ranking_correlation: Spearman correlation of the rankings of texts by similarity, averaged over texts.
        neighbour_agreement: Share of nearest neighbours in common.
        layers: The drift of each layer, from the input up.
        perplexity_before: Perplexity of the original; ``None`` for encoders.
        perplexity_after: Perplexity now; ``None`` for encoders.
    """

    step: int
    texts: int
    ranking_correlation: float
    neighbour_agreement: float
    layers: tuple[LayerDrift, ...]
    perplexity_before: float | None = None
    perplexity_after: float | None = None

    @property
    def perplexity_ratio(self) -> float | None:
        """Perplexity now over that of the original; ``None`` for encoders."""
        if self.perplexity_before is None or self.perplexity_after is None:
            return None
        return self.perplexity_after / self.perplexity_before

    def metrics(self) -> dict[str, float]:
        """Return all numbers by the names under which they are logged, as ``forgetting/cka/0``."""
        found: dict[str, float | None] = {
            "ranking_correlation": self.ranking_correlation,
            "ranking_drop": 1 - self.ranking_correlation,
            "neighbour_agreement": self.neighbour_agreement,
            "perplexity_before": self.perplexity_before,
            "perplexity_after": self.perplexity_after,
            "perplexity_ratio": self.perplexity_ratio,
        }
        for layer in self.layers:
            found[f"cka/{layer.layer}"] = layer.cka
            found[f"l2/{layer.layer}"] = layer.l2
            found[f"relative_l2/{layer.layer}"] = layer.relative_l2
        return {f"forgetting/{name}": value for name, value in found.items() if value is not None}

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain data, as JSON has it."""
        return asdict(self) | {"layers": [asdict(layer) for layer in self.layers]}

    def __str__(self) -> str:
        """One line."""
        first, last = self.layers[0], self.layers[-1]
        line = (
            f"Forgetting on {self.texts} general texts: similarity ranking {self.ranking_correlation:.3f} of 1, "
            f"{self.neighbour_agreement:.0%} of nearest neighbours kept, CKA {first.cka:.3f} ({first.layer}) to "
            f"{last.cka:.3f} ({last.layer})"
        )
        if self.perplexity_before is None or self.perplexity_after is None:
            return f"{line}."
        return f"{line}, perplexity {self.perplexity_before:.4g} before and {self.perplexity_after:.4g} now."


def compare(before: Features, after: Features, neighbours: int, step: int) -> ForgettingResult:
    """Compare the features of a fine-tuned model with those of the original.

    Args:
        before: Those of the original.
        after: Those of the fine-tuned model, for the same texts.
        neighbours: How many nearest neighbours of a text count.
        step: Number of optimizer steps between the two.

    Raises:
        ValueError: The two have different layers or texts.
    """
    if before.layers.keys() != after.layers.keys():
        raise ValueError(f"The layers are {list(after.layers)}: expected {list(before.layers)}.")
    pairs = [(name, features, after.layers[name]) for name, features in before.layers.items()]
    _, original, current = pairs[-1]
    drifts = [LayerDrift(name, linear_cka(x, y), l2_distance(x, y, False), l2_distance(x, y)) for name, x, y in pairs]
    return ForgettingResult(
        step=step,
        texts=len(original),
        ranking_correlation=ranking_correlation(original, current),
        neighbour_agreement=neighbour_agreement(original, current, neighbours),
        layers=tuple(drifts),
        perplexity_before=_perplexity(before),
        perplexity_after=_perplexity(after),
    )


def _perplexity(features: Features) -> float | None:
    if features.loss is None:
        return None
    return math.inf if features.loss > 700 else math.exp(features.loss)  # beyond, the exponential overflows
