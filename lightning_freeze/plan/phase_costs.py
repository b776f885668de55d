"""The phases of a run that is about to begin: what trains in each, and the cost of a step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.nn import Parameter

from lightning_freeze.cache.identity.values import record_of
from lightning_freeze.layers import LayerStack
from lightning_freeze.layers.analysis.unused_copies import unused_copies
from lightning_freeze.plan.layer_ranges import selector_of
from lightning_freeze.plan.records import PlannedLayer, PlannedPhase
from lightning_freeze.plan.run_length import run_length
from lightning_freeze.plan.scheduler_preview import SchedulerPreview
from lightning_freeze.plan.step_costs import StepCost, StepCosts, why_unknown
from lightning_freeze.plan.timeline import Segment, timeline
from lightning_freeze.plan.training_plan import TrainingPlan
from lightning_freeze.schedule.phases import Phase
from lightning_freeze.schedule.triggers import Pace
from lightning_freeze.session.session import Session

Turns = list[list[tuple[int, Phase]]]
"""The phases of each schedule in the order in which the run has them, each with its index in the schedule."""


def phases_of_run(
    session: Session, batch: Any, uses_cache: bool, memory: int | None = None, device: str | None = None
) -> TrainingPlan:
    """Plan a run whose callbacks have joined, and whose optimizers exist.

    Args:
        session: The fit that is about to begin.
        batch: One training batch.
        uses_cache: Whether the run has a FrozenPrefixCache.
        memory: Available memory in bytes, to find out what fits.
        device: The type of the device that the run trains on; by default that of the module's parameters.
    """
    trainer, schedules = session.trainer, session.schedules
    length = run_length(trainer)
    pace = length.pace
    notes = [length.note] if length.note else []
    turns = [schedule.turns(length.steps) for schedule in schedules]
    total = _planned_batches(turns, pace, length.batches, notes)
    segments = timeline([[phase for _, phase in each] for each in turns], pace, total)
    costs = _measure(session, batch, device, notes)
    schedulers = SchedulerPreview(trainer, pace)
    phases: list[PlannedPhase] = []
    steps: list[StepCost] = []
    for number, segment in enumerate(segments, start=1):
        _preview(session, turns, segment)
        if costs is not None:
            steps.append(costs.next_phase())
        rates = _highest_rates(session, schedulers.during(segment.first, segment.last))
        ends = [each[p][1].until for each, p in zip(turns, segment.phases, strict=True) if p < len(each) - 1]
        phases.append(
            PlannedPhase(
                number=number,
                first_batch=segment.first,
                last_batch=segment.last,
                begins_open=segment.begins_open,
                ends_open=segment.ends_open,
                until=" or ".join(map(str, ends)) if number < len(segments) else "",
                layers=_layers(session, rates),
                memory=steps[-1].memory if steps else None,
                time=steps[-1].time if steps else None,
            )
        )
    # Each boundary has entries of its own; phases with the same boundary share them.
    hidden = {cost.step.prefix: cost.step.hidden for cost in steps}
    tensors = _tensors_of(batch)
    return TrainingPlan(
        phases=tuple(phases),
        full=None if costs is None else costs.full,
        schedules=tuple(
            _written(s.stack, [phase for _, phase in own]) for s, own in zip(schedules, turns, strict=True)
        ),
        batch={name: tuple(tensor.shape) for name, tensor in tensors.items()},
        batch_size=next((len(tensor) for tensor in tensors.values() if tensor.ndim), 1),
        batches=total,
        batches_per_epoch=pace.batches_per_epoch,
        cache_bytes=sum(hidden.values()) * pace.batches_per_epoch,
        uses_cache=uses_cache,
        notes=tuple(notes),
        memory_limit=memory,
        fitting=None if memory is None or costs is None else costs.fitting(memory),
    )


def _planned_batches(turns: Turns, pace: Pace, total: int | None, notes: list[str]) -> int | None:
    """How many batches are planned: those of the whole run, unless a schedule has more turns than are shown."""
    planned = total
    for each in turns:
        if each[-1][1].until is None:
            continue
        batch = 0
        for _, phase in each:
            assert phase.until is not None
            batch = phase.until.earliest(batch, pace)
        planned = batch if planned is None else min(planned, batch)
    if planned is not None and planned != total:
        of = "" if total is None else f" of {total:,}"
        notes.append(f"Only the first {planned:,}{of} training batches are planned. What trains goes on changing.")
    return planned


def _measure(session: Session, batch: Any, device: str | None, notes: list[str]) -> StepCosts | None:
    if not session.module.automatic_optimization:
        notes.append("Manual optimization: what a step costs is up to training_step, so only what trains is planned.")
        return None
    try:
        return StepCosts(session, batch, device)
    except Exception as error:  # user code may raise any error on tensors without values
        notes.append(f"Time and memory are not known: {why_unknown(error)}")
        return None


def _preview(session: Session, turns: Turns, segment: Segment) -> None:
    for schedule, own, position in zip(session.schedules, turns, segment.phases, strict=True):
        schedule.preview(own[position][0])
    session.holds.set_eval_mode()


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


def _written(stack: LayerStack, phases: Sequence[Phase]) -> tuple[Phase, ...]:
    return (*(_short(stack, phase) for phase in phases[:-1]), _short(stack, replace(phases[-1], until=None)))


def _short(stack: LayerStack, phase: Phase) -> Phase:
    selection = stack.select(phase.train)
    text = selector_of([layer.name for layer in selection.layers], stack.names)
    is_same = bool(text) and set(stack.select(text).parameters) == set(selection.parameters)
    return replace(phase, train=text) if is_same else phase


def _tensors_of(batch: Any, place: str = "") -> dict[str, Tensor]:
    """The tensors of a batch by their places in it, such as ``"images.0"``."""
    if isinstance(batch, Tensor):
        return {place: batch}
    if isinstance(batch, Mapping):
        parts = dict(batch)
    elif isinstance(batch, (list, tuple)):
        parts = dict(enumerate(batch))
    else:
        parts = record_of(batch) or {}
    found: dict[str, Tensor] = {}
    for name, part in parts.items():
        found.update(_tensors_of(part, f"{place}.{name}" if place else str(name)))
    return found
