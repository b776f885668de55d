"""One call of ``advise``: plans, measures, races and chooses."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule

from lightning_freeze.advice.candidates import FULL, Candidate, Entry, candidates_for
from lightning_freeze.advice.fits.callbacks_in_words import described
from lightning_freeze.advice.fits.fit_store import FitStore, fingerprint
from lightning_freeze.advice.fits.single_fit import FitScore, FitSettings, UnknownMetricError, free_memory, run_fit
from lightning_freeze.advice.measures.bootstrap import Difference, paired_difference
from lightning_freeze.advice.measuring import Measurements, measure
from lightning_freeze.advice.metric import Mode
from lightning_freeze.advice.race import Standing, run_race
from lightning_freeze.advice.records import CandidateResult, ShortRun
from lightning_freeze.advice.result import Advice
from lightning_freeze.callbacks import FrozenPrefixCache
from lightning_freeze.callbacks.layer_callback import LayerCallback
from lightning_freeze.errors import ConfigurationError
from lightning_freeze.layers import LayerStack
from lightning_freeze.plan import TrainingPlan, plan_training

#: Arguments of the Trainer that a plan takes.
_COURSE = (
    *("max_epochs", "max_steps", "limit_train_batches", "val_check_interval", "check_val_every_n_epoch"),
    *("accumulate_grad_batches", "precision"),
)
# Fewer steps than these leave most models where they were.
_FEWEST_STEPS = 20
# A cache that saves less than this share of the time is not worth its files.
_CACHE_GAIN = 0.05


@dataclass
class _Entrant:
    """A candidate, what it is predicted to cost, and what it has reached."""

    candidate: Candidate
    plan: TrainingPlan | None
    has_cache: bool = False
    problem: str = ""
    rounds: list[ShortRun] = field(default_factory=list)
    final: list[FitScore] = field(default_factory=list)

    @property
    def relative_time(self) -> float | None:
        return None if self.plan is None else self.plan.total_time(cached=self.has_cache)

    def result(self) -> CandidateResult:
        peak = None if self.plan is None else self.plan.peak()
        last = None if self.plan is None else self.plan.phases[-1]
        return CandidateResult(
            self.candidate.name,
            self.candidate.why,
            self.candidate.entries,
            tuple(self.rounds),
            tuple(fit.score for fit in self.final),
            self.relative_time,
            None if peak is None else peak.total,
            0.0 if last is None or self.plan is None else last.trainable / max(1, self.plan.parameters),
            self.problem,
        )


@dataclass
class AdviceRun:
    """One call of :func:`~lightning_freeze.advise`: plans, measures, races and chooses.

    Args:
        settings: What all fits share.
        module: The module, to measure it and to plan.
        mode: Whether larger or smaller values of the metric are better.
        budget: As for :func:`~lightning_freeze.advise`.
        seeds: As for :func:`~lightning_freeze.advise`.
        tolerance: As for :func:`~lightning_freeze.advise`.
        working_folder: Where scores and hidden states are kept during the call.
        verbose: Whether to print a line for each fit.
        cache_dir: The ``cache_dir`` of the plans that are recommended.
    """

    settings: FitSettings
    module: LightningModule
    mode: Mode
    budget: float
    seeds: int
    tolerance: float
    working_folder: Path
    verbose: bool
    cache_dir: str | None
    cost: float = 0.0
    seconds: float = 0.0
    warned: list[str] = field(default_factory=list)

    def advise(self, examples: int, own: Sequence[LayerCallback], others: Sequence[Entry], keeps: bool) -> Advice:
        """Do it all.

        Args:
            examples: Training examples for the probes.
            own: Callbacks of the user that are a plan of their own.
            others: All other callbacks of the user, in words.
            keeps: Whether scores are kept in a file.
        """
        full = self._planned([])
        steps = _steps_of(full, self.settings.trainer)
        self.settings = replace(self.settings, batches_per_epoch=full.batches_per_epoch)
        _check_validation(self.settings.datamodule)
        found = self._measured(examples)
        path = self.working_folder / "fits.jsonl" if keeps else None
        about = [self.settings.trainer, steps, found.set_up, others]
        self.store = FitStore(path, fingerprint(self.module, self.settings.datamodule, about))
        rates = [rate for phase in full.phases for layer in phase.layers for rate in layer.rates]
        candidates = candidates_for(LayerStack(self.module), found, steps, max(rates, default=0.0))
        if own:
            make = _copier(own)
            candidates.append(Candidate("as configured", "the callbacks of the config", described(own), make))
        self.steps, self.plans = steps, {each.name: self._plan(each, full) for each in candidates}
        self._say(f"{len(self.plans)} plans; {self.settings.monitor} decides; a whole run has {steps} steps.")
        names = [name for name, plan in self.plans.items() if not plan.problem]
        standing = run_race(names, FULL, self._fit, self.budget, self.seeds)
        return self._advice(standing, found)

    def _measured(self, examples: int) -> Measurements:
        keys = ("accelerator", "precision", "limit_train_batches")
        options = {k: v for k, v in self.settings.trainer.items() if k in keys}
        return measure(self.module, self.settings.datamodule, examples, **options)

    def _planned(self, callbacks: list[Callback]) -> TrainingPlan:
        course = {name: self.settings.trainer[name] for name in _COURSE if name in self.settings.trainer}
        return plan_training(self.module, callbacks, datamodule=self.settings.datamodule, **course)

    def _plan(self, candidate: Candidate, full: TrainingPlan) -> _Entrant:
        try:
            plan = full if candidate.name == FULL else self._planned(candidate.build())
        except ConfigurationError as error:
            return _Entrant(candidate, None, problem=str(error))
        frozen, cached = plan.total_time(), plan.total_time(cached=True)
        pays = frozen is not None and cached is not None and cached < (1 - _CACHE_GAIN) * frozen
        if not pays or candidate.make is not None:
            return _Entrant(candidate, plan)
        return _Entrant(candidate.with_cache(self.cache_dir), plan, has_cache=True)

    def _fit(self, name: str, share: float, seed: int) -> float:
        plan = self.plans[name]
        entries = [dict(entry) for entry in plan.candidate.at(share).entries]
        facts = {"plan": name, "callbacks": _without_folders(entries), "share": share, "seed": seed}
        facts["monitor"] = self.settings.monitor

        def fit() -> FitScore:
            free_memory()
            return run_fit(self.settings, self._callbacks(plan, share), seed, share)

        try:
            found = self.store.get(facts, fit)
        except UnknownMetricError:
            raise
        except (ConfigurationError, torch.OutOfMemoryError) as error:
            plan.problem = str(error).strip().partition("\n")[0]
            return -math.inf
        if share < 1:
            plan.rounds.append(ShortRun(share, found.score))
        elif len(plan.final) <= seed:
            plan.final.append(found)
        else:  # the same fit as in a round of full length
            return self._signed(found.score)
        self.cost += share * (1.0 if plan.relative_time is None else plan.relative_time)
        self.seconds += found.seconds
        if share >= 1:  # that a schedule does not fit into a short run is no news
            self.warned += [f"{name}: {text}" for text in found.warnings]
        self._say(f"{name}: {share:.0%} of the run, seed {seed}: {self.settings.monitor} {found.score:.4f}")
        return self._signed(found.score)

    def _callbacks(self, plan: _Entrant, share: float) -> list[Callback]:
        built = plan.candidate.at(share).build()
        for callback in built:
            if isinstance(callback, FrozenPrefixCache):
                callback.cache_dir = self.working_folder / "cache"
        return built

    def _advice(self, standing: Standing, found: Measurements) -> Advice:
        finalists = [self.plans[name] for name in standing.finalists if self.plans[name].final]
        if not finalists:
            raise ConfigurationError(f"No plan could be trained: {self.plans[FULL].problem}")
        best = max(self._quality(plan) for plan in finalists)
        good = [plan for plan in finalists if self._quality(plan) >= best - self.tolerance] or finalists
        chosen = min(good, key=lambda plan: (_time(plan), -self._quality(plan)))
        order = [*standing.finalists, *(name for names, _ in reversed(standing.rounds) for name in names), *self.plans]
        return Advice(
            recommended=chosen.candidate.name,
            results=tuple(self.plans[name].result() for name in dict.fromkeys(order)),
            monitor=self.settings.monitor,
            mode=self.mode,
            difference=self._difference(chosen, self.plans[FULL]),
            tolerance=self.tolerance,
            measurements=found,
            steps=self.steps,
            seeds=self.seeds,
            cost=self.cost,
            seconds=self.seconds,
            notes=(*found.notes, *_about_length(standing, self.steps), *dict.fromkeys(self.warned)),
        )

    def _difference(self, chosen: _Entrant, full: _Entrant) -> Difference | None:
        """How much better the chosen plan is, with examples where there are any, else over seeds alone."""
        if chosen is full or len(chosen.final) != len(full.final):
            return None
        sign = 1 if self.mode == "max" else -1
        rows = [[fit.examples or (fit.score,) for fit in plan.final] for plan in (chosen, full)]
        if len({len(row) for plan in rows for row in plan}) > 1 or (len(rows[0]) < 2 and len(rows[0][0]) < 2):
            return None
        first, second = (torch.tensor(plan, dtype=torch.float64) * sign for plan in rows)
        return paired_difference(first, second)

    def _quality(self, plan: _Entrant) -> float:
        scores = [self._signed(fit.score) for fit in plan.final]
        return sum(scores) / len(scores)

    def _signed(self, score: float) -> float:
        if math.isnan(score):
            return -math.inf
        return score if self.mode == "max" else -score

    def _say(self, text: str) -> None:
        if self.verbose:
            print(text, flush=True)


def _about_length(standing: Standing, steps: int) -> list[str]:
    shortest = min((max(1, round(share * steps)) for _, share in standing.rounds), default=_FEWEST_STEPS)
    if shortest >= _FEWEST_STEPS:
        return []
    return [
        f"The shortest runs had about {shortest} optimizer steps, which hardly tell plans apart: a larger budget or a "
        "longer run makes them longer."
    ]


def _time(plan: _Entrant) -> float:
    return 1.0 if plan.relative_time is None else plan.relative_time


def _check_validation(datamodule: LightningDataModule) -> None:
    loaders = datamodule.val_dataloader()
    if loaders is None or (isinstance(loaders, list | tuple) and not loaders):
        raise ConfigurationError(
            f"{type(datamodule).__name__} has no validation data, by which plans are compared: expected a val file, or "
            "a split with a share for it."
        )


def _steps_of(plan: TrainingPlan, options: Any) -> int:
    if plan.batches is None:
        raise ConfigurationError("The run has no end: expected max_epochs or max_steps.")
    return max(1, math.ceil(plan.batches / int(options.get("accumulate_grad_batches") or 1)))


def _copier(callbacks: Sequence[Callback]) -> Callable[[], list[Callback]]:
    return lambda: copy.deepcopy(list(callbacks))


def _without_folders(entries: Sequence[dict[str, Any]]) -> list[Any]:
    return [entry for entry in entries if entry["class_path"] != "FrozenPrefixCache"]
