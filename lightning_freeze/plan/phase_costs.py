"""The phases of a run that is about to begin: what trains in each, and the cost of a step."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.nn import Parameter
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_leaves

from lightning_freeze.cache.checks.side_effects import isolated
from lightning_freeze.cache.identity.cached_towers import find_towers
from lightning_freeze.cache.prefix.random_state import RandomState
from lightning_freeze.layers import LayerStack
from lightning_freeze.layers.analysis.unused_copies import unused_copies
from lightning_freeze.plan.layer_ranges import selector_of
from lightning_freeze.plan.records import Fitting, Memory, PlannedLayer, PlannedPhase, StepTime
from lightning_freeze.plan.scheduler_preview import SchedulerPreview
from lightning_freeze.plan.step.fake_step import MeasuredStep, measure_step
from lightning_freeze.plan.timeline import Segment, timeline
from lightning_freeze.plan.training_plan import TrainingPlan
from lightning_freeze.schedule.checks import pace_of
from lightning_freeze.schedule.phases import Phase
from lightning_freeze.session.session import Session


@dataclass
class _Costs:
    """What a step costs with some layers frozen, relative to full fine-tuning."""

    device: str
    full: MeasuredStep
    weights: int

    def memory(self, step: MeasuredStep) -> Memory:
        return Memory(self.weights, step.gradients, step.optimizer, step.activations)

    def time(self, step: MeasuredStep) -> StepTime:
        full = self._time(self.full, cached=False)
        cached = self._time(step, cached=True) / full if step.prefix.flops else None
        flops = step.forward.flops + step.prefix.flops + step.backward.flops
        return StepTime(self._time(step, cached=False) / full, cached, flops)

    def _time(self, step: MeasuredStep, cached: bool) -> float:
        passes = step.forward + step.backward
        work = passes if cached else passes + step.prefix
        return work.time_on(self.device) + step.update.time_on(self.device, is_update=True)


def phases_of_run(session: Session, batch: Any, uses_cache: bool, memory: int | None = None) -> TrainingPlan:
    """Plan a run whose callbacks have joined, and whose optimizers exist.

    Args:
        session: The fit that is about to begin.
        batch: One training batch.
        uses_cache: Whether the run has a FrozenPrefixCache.
        memory: Available memory in bytes, to find out what fits.
    """
    trainer, schedules = session.trainer, session.schedules
    pace = pace_of(trainer)
    total = _total_batches(trainer)
    segments = timeline([schedule.plan for schedule in schedules], pace, total)
    notes: list[str] = []
    costs, steps = _measure(session, batch, segments, notes)
    schedulers = SchedulerPreview(trainer, pace)
    phases = []
    for number, (segment, step) in enumerate(zip(segments, steps, strict=True), start=1):
        _preview(session, segment)
        rates = _highest_rates(session, schedulers.during(segment.first, segment.last))
        ends = [s.plan[p].until for s, p in zip(schedules, segment.phases, strict=True) if p < len(s.plan) - 1]
        phases.append(
            PlannedPhase(
                number=number,
                first_batch=segment.first,
                last_batch=segment.last,
                begins_open=segment.begins_open,
                ends_open=segment.ends_open,
                until=" or ".join(map(str, ends)) if number < len(segments) else "",
                layers=_layers(session, rates),
                memory=costs.memory(step) if costs is not None and step is not None else None,
                time=costs.time(step) if costs is not None and step is not None else None,
            )
        )
    # Each boundary has entries of its own; phases with the same boundary share them.
    hidden = {step.prefix: step.hidden for step in steps if step is not None}
    return TrainingPlan(
        phases=tuple(phases),
        full=None if costs is None else costs.memory(costs.full),
        schedules=tuple(tuple(_short(schedule.stack, phase) for phase in schedule.plan) for schedule in schedules),
        batch=_shapes(batch),
        batch_size=_batch_size(batch),
        batches=total,
        batches_per_epoch=pace.batches_per_epoch,
        cache_bytes=sum(hidden.values()) * pace.batches_per_epoch,
        uses_cache=uses_cache,
        notes=tuple(notes),
        memory_limit=memory,
        fitting=None if memory is None or costs is None else _find_fitting(session, batch, costs, memory),
    )


def _find_fitting(session: Session, batch: Any, costs: _Costs, memory: int) -> Fitting | None:
    """Find the shortest prefix of the layers to freeze; a longer one never needs more."""
    layers = [layer for layer in session.stack if not layer.is_bystander]
    names = [layer.name for layer in layers]

    @cache  # what the search has looked at is asked for again
    def kept(frozen: int) -> Memory:
        held = [p for layer in layers[:frozen] for p in layer.parameters()]
        with session.holds.lifted():
            trains = [p for p in held if p.requires_grad]
            for parameter in trains:
                parameter.requires_grad_(False)
            try:
                return costs.memory(_step(session, batch))
            finally:
                for parameter in trains:
                    parameter.requires_grad_(True)

    if kept(len(layers) - 1).total > memory:
        return None
    found = bisect_left(range(len(layers)), True, key=lambda frozen: kept(frozen).total <= memory)
    return Fitting(selector_of(names[:found], names), kept(found))


def _measure(
    session: Session, batch: Any, segments: Sequence[Segment], notes: list[str]
) -> tuple[_Costs | None, list[MeasuredStep | None]]:
    module = session.module
    if not module.automatic_optimization:
        notes.append("Manual optimization: what a step costs is up to training_step, so only what trains is planned.")
        return None, [None] * len(segments)
    device = next((p.device.type for p in module.parameters() if p.device.type != "meta"), "cpu")
    weights = sum(t.nbytes for t in (*module.parameters(), *module.buffers()))
    try:
        steps: list[MeasuredStep | None] = []
        for segment in segments:
            _preview(session, segment)
            session.holds.set_eval_mode()
            steps.append(_step(session, batch))
        with session.holds.lifted():
            modes = [(m, m.training) for m in session.holds.modules()]
            for frozen, _ in modes:
                frozen.training = True
            full = _step(session, batch)
            for frozen, mode in modes:
                frozen.training = mode
    except Exception as error:  # user code may raise any error on tensors without values
        first = str(error).strip().partition("\n")[0]
        notes.append(
            f"Time and memory are not known: training_step cannot be run on tensors without values "
            f"({type(error).__name__}: {first})."
        )
        return None, [None] * len(segments)
    return _Costs(device, full, weights), steps


def _step(session: Session, batch: Any) -> MeasuredStep:
    module, trainer = session.module, session.trainer
    prefixes = []
    for tower in find_towers(session.stack)[0]:
        boundary = tower.boundary()
        if boundary:
            prefixes.append([*tower.embedding_modules, *tower.blocks[:boundary]])
    cpu = torch.device("cpu")
    with isolated(module, RandomState(cpu), cpu), torch.enable_grad():
        return measure_step(module, batch, trainer.optimizers, prefixes, trainer.precision_plugin.train_step_context)


def _preview(session: Session, segment: Segment) -> None:
    for schedule, phase in zip(session.schedules, segment.phases, strict=True):
        schedule.preview(phase)


def _highest_rates(session: Session, moments: Iterable[None]) -> dict[Parameter, float]:
    rates: dict[Parameter, float] = {}
    for _ in moments:
        for optimizer in session.trainer.optimizers:
            for parameter, rate in session.rates.rates_of(optimizer).items():
                rates[parameter] = max(rate, rates.get(parameter, 0.0))
    return rates


def _layers(session: Session, rates: Mapping[Parameter, float]) -> tuple[PlannedLayer, ...]:
    unused = unused_copies(session.module)
    layers = []
    for layer in session.stack:
        if layer.is_bystander:
            continue
        parameters = [p for p in layer.parameters() if p not in unused]
        trains = [p for p in parameters if p.requires_grad]
        found = tuple(sorted({rates[p] for p in trains if p in rates}))
        layers.append(PlannedLayer(layer.name, _numel(parameters), _numel(trains), found))
    return tuple(layers)


def _numel(parameters: Sequence[Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _total_batches(trainer: Trainer) -> int | None:
    steps = trainer.estimated_stepping_batches
    if steps == math.inf or steps < 0:
        return None
    per_epoch = int(trainer.num_training_batches)
    if trainer.max_steps and trainer.max_steps > 0:
        per_step = trainer.accumulate_grad_batches
        steps_per_epoch = math.ceil(per_epoch / per_step)
        epochs, rest = divmod(int(steps), steps_per_epoch)
        return epochs * per_epoch + rest * per_step
    return per_epoch * int(trainer.max_epochs or 1)


def _short(stack: LayerStack, phase: Phase) -> Phase:
    selection = stack.select(phase.train)
    text = selector_of([layer.name for layer in selection.layers], stack.names)
    is_same = bool(text) and set(stack.select(text).parameters) == set(selection.parameters)
    return replace(phase, train=text) if is_same else phase


def _shapes(batch: Any) -> dict[str, tuple[int, ...]]:
    leaves = tree_flatten_with_path(batch)[0]
    return {keystr(path).strip("[]'\""): tuple(leaf.shape) for path, leaf in leaves if isinstance(leaf, Tensor)}


def _batch_size(batch: Any) -> int:
    return next((len(leaf) for leaf in tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.ndim), 1)
