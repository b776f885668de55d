"""The result of a comparison as a plain record, and which plan wins."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from lightning_freeze.comparison.fits import FitOutcome
from lightning_freeze.comparison.plan_summary import PlanPair, PlanSummary
from lightning_freeze.comparison.settings import Mode, Test


@dataclass(frozen=True)
class ComparisonRecord:
    """Which plan wins, at what cost, and how sure that is.

    Attributes:
        plans: What was found out about each plan, in the order of the comparison file.
        pairs: The paired test of each plan against each other.
        fits: All fits.
        metric: The metric that counts.
        mode: ``"max"`` if a larger one is better.
        baseline: The plan that the others are tested against in ``plans``.
        test: The test.
        seeds: The seeds.
        notes: Sentences on what has to be known to read the numbers.
    """

    plans: tuple[PlanSummary, ...]
    pairs: tuple[PlanPair, ...]
    fits: tuple[FitOutcome, ...]
    metric: str
    mode: Mode
    baseline: str
    test: Test
    seeds: tuple[int, ...]
    notes: tuple[str, ...] = ()

    @property
    def best(self) -> PlanSummary:
        """The plan with the best mean; one that is not finite counts only if there is no other."""
        sign = 1 if self.mode == "max" else -1
        known = [plan for plan in self.plans if plan.mean is not None and math.isfinite(plan.mean)]
        return max(known or self.plans, key=lambda plan: sign * (plan.mean or 0.0))

    @property
    def beaten(self) -> list[str]:
        """The plans that the best one is better than, by the test of all pairs.

        A mean is over all seeds of a plan, a test over those that both plans have. Where some fits have failed, the two
        can say the opposite, and then nothing is shown.
        """
        return [name for name, is_beaten in self._against_best() if is_beaten]

    @property
    def undecided(self) -> list[str]:
        """The plans of which it is not known whether the best one is better."""
        return [name for name, is_beaten in self._against_best() if not is_beaten]

    @property
    def failed(self) -> list[str]:
        """The plans of which no fit has succeeded, so that nothing is known about them."""
        return [plan.name for plan in self.plans if plan.mean is None]

    def _against_best(self) -> list[tuple[str, bool]]:
        best, failed = self.best.name, self.failed
        found = [
            (pair.other if pair.plan == best else pair.plan, self._favours(best, pair))
            for pair in self.pairs
            if best in (pair.plan, pair.other)
        ]
        return [(name, is_beaten) for name, is_beaten in found if name not in failed]

    def _favours(self, name: str, pair: PlanPair) -> bool:
        if pair.test is None or not pair.test.is_significant:
            return False
        gain = pair.test.difference if self.mode == "max" else -pair.test.difference
        return gain > 0 if pair.plan == name else gain < 0

    def to_dict(self) -> Mapping[str, Any]:
        """The comparison as nested dicts, lists and numbers. Configs of the fits are left out."""
        fits = [
            {
                "plan": fit.task.plan,
                "seed": fit.task.seed,
                "error": fit.error,
                "result": None if fit.result is None else fit.result.to_dict(),
            }
            for fit in self.fits
        ]
        verdict = {
            "best": self.best.name,
            "beaten": self.beaten,
            "undecided": self.undecided,
            "failed": self.failed,
        }
        return {**asdict(replace(self, fits=())), **verdict, "fits": fits}
