"""What advice says, as plain records."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lightning_freeze.advice.candidates import FULL
from lightning_freeze.advice.measures.bootstrap import Difference
from lightning_freeze.advice.measuring import Measurements


@dataclass(frozen=True)
class ShortRun:
    """A candidate in one round of the race.

    Attributes:
        share: How long it trained, as a share of the whole run.
        score: Its metric.
    """

    share: float
    score: float


@dataclass(frozen=True)
class CandidateResult:
    """One plan, and what it reached.

    Attributes:
        name: Its name.
        why: Why it was tried.
        entries: Its callbacks, as a config has them.
        rounds: Its short runs.
        scores: Its metric at full length, for each seed; empty if it did not reach the final.
        relative_time: Predicted time of its training steps, full fine-tuning is 1; with FrozenPrefixCache if it has
            one. ``None`` if it is not known.
        peak_bytes: Predicted memory of a training step. ``None`` if it is not known.
        trainable: Share of the parameters that train in the last phase.
        problem: Why it could not be trained; empty if it could.
    """

    name: str
    why: str
    entries: tuple[Mapping[str, Any], ...]
    rounds: tuple[ShortRun, ...]
    scores: tuple[float, ...]
    relative_time: float | None
    peak_bytes: int | None
    trainable: float
    problem: str = ""

    @property
    def mean(self) -> float | None:
        """Its mean metric at full length; ``None`` if it did not reach the final."""
        return statistics.fmean(self.scores) if self.scores else None

    @property
    def spread(self) -> float | None:
        """The standard deviation over the seeds; ``None`` with fewer than two."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else None


@dataclass(frozen=True)
class AdviceRecord:
    """What was measured, how the race went, and what to do.

    Attributes:
        recommended: Name of the plan to use.
        results: All plans, the finalists first, then in the order in which they were left behind.
        monitor: The metric.
        mode: ``"max"`` if larger is better, ``"min"`` if smaller is.
        difference: The recommended plan minus full fine-tuning, in terms of the metric, positive if it is better;
            ``None`` if the two are the same plan, or there is too little to say.
        tolerance: By how much the recommended plan may be worse than the best finalist, because it costs less.
        measurements: What the features and gradients say.
        steps: Optimizer steps of the whole run.
        seeds: Number of seeds in the final.
        cost: What the race has cost, in runs of full fine-tuning, with the predicted time of each plan.
        seconds: What the race has cost in seconds of training, fits of earlier calls included.
        notes: Sentences on what is not known.
    """

    recommended: str
    results: tuple[CandidateResult, ...]
    monitor: str
    mode: str
    difference: Difference | None
    tolerance: float
    measurements: Measurements
    steps: int
    seeds: int
    cost: float
    seconds: float
    notes: tuple[str, ...] = ()

    @property
    def best(self) -> CandidateResult:
        """The recommended plan."""
        return self.result(self.recommended)

    @property
    def full(self) -> CandidateResult:
        """Full fine-tuning."""
        return self.result(FULL)

    def result(self, name: str) -> CandidateResult:
        """A plan by name.

        Args:
            name: One of the names in ``results``.
        """
        return next(result for result in self.results if result.name == name)

    def to_dict(self) -> dict[str, Any]:
        """Everything as nested dicts, lists, numbers and text."""
        results = [{**asdict(result), "mean": result.mean, "spread": result.spread} for result in self.results]
        return {**asdict(self), "results": results}
