"""The cost of a training step in each phase, and the least freezing whose step fits in some memory."""

from __future__ import annotations

import traceback
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.nn import Parameter

from lightning_freeze.cache.checks.side_effects import isolated
from lightning_freeze.cache.identity.cached_towers import find_towers
from lightning_freeze.cache.prefix.random_state import RandomState
from lightning_freeze.plan.layer_ranges import selector_of
from lightning_freeze.plan.records import Fitting, Memory, StepTime
from lightning_freeze.plan.step.fake_step import MeasuredStep, measure_step
from lightning_freeze.session.session import Session

#: Folders of packages whose lines say nothing about what a module does wrong.
_LIBRARIES = ("/torch/", "/lightning/", "/pytorch_lightning/", "/lightning_freeze/", "/torchmetrics/")


@dataclass(frozen=True)
class StepCost:
    """What a step costs.

    Attributes:
        memory: What it keeps.
        time: How long it takes.
        step: The step itself, as it was measured.
    """

    memory: Memory
    time: StepTime
    step: MeasuredStep


class StepCosts:
    """Measures one training step of each phase, relative to full fine-tuning.

    Args:
        session: The fit that is about to begin.
        batch: One training batch.
        device: The type of the device that the run trains on; by default that of the module's parameters.

    Attributes:
        full: Memory of a step of full fine-tuning.

    Raises:
        Exception: Any error of the module, for example because it reads the values of a tensor.
    """

    def __init__(self, session: Session, batch: Any, device: str | None = None) -> None:
        self._session = session
        self._batch = batch
        module = session.module
        own = next((p.device.type for p in module.parameters() if p.device.type != "meta"), "cpu")
        self._device = device or own
        self._weights = sum(t.nbytes for t in (*module.parameters(), *module.buffers()))
        self._known: dict[tuple[frozenset[Parameter], frozenset[int]], MeasuredStep] = {}
        self._states: dict[Parameter, int] = {}
        with self._session.holds.lifted_with_modes():
            step = self._measured()
        self._full_time = self._time(step, cached=False)
        self.full = self._memory(step, step.states.values())

    def next_phase(self) -> StepCost:
        """The cost of a step with what trains now, after the phases that were asked for before."""
        step = self._measured()
        for parameter in self._forgotten():
            self._states.pop(parameter, None)
        self._states.update(step.states)
        return StepCost(self._memory(step, self._states.values()), self._relative(step), step)

    def fitting(self, limit: int) -> Fitting | None:
        """Find the shortest prefix of the layers to freeze so that a step fits; a longer one never needs more.

        Args:
            limit: Available memory in bytes.
        """
        layers = [layer for layer in self._session.stack if not layer.is_bystander]
        names = [layer.name for layer in layers]

        @cache  # what the search has looked at is asked for again
        def kept(frozen: int) -> Memory:
            with self._session.holds.lifted_with_modes():
                trains = [p for layer in layers[:frozen] for p in layer.parameters() if p.requires_grad]
                for parameter in trains:
                    parameter.requires_grad_(False)
                try:
                    step = self._measured()
                finally:
                    for parameter in trains:
                        parameter.requires_grad_(True)
            return self._memory(step, step.states.values())

        if kept(len(layers) - 1).total > limit:
            return None
        found = bisect_left(range(len(layers)), True, key=lambda frozen: kept(frozen).total <= limit)
        return Fitting(selector_of(names[:found], names), kept(found))

    def _measured(self) -> MeasuredStep:
        module, trainer = self._session.module, self._session.trainer
        trains = frozenset(p for p in module.parameters() if p.requires_grad)
        key = trains, frozenset(id(m) for m in module.modules() if m.training)
        if key not in self._known:
            prefixes = []
            for tower in find_towers(self._session.stack)[0]:
                boundary = tower.boundary()
                if boundary:
                    prefixes.append([*tower.embedding_modules, *tower.blocks[:boundary]])
            cpu = torch.device("cpu")
            context = trainer.precision_plugin.train_step_context
            with isolated(module, RandomState(cpu), cpu), torch.enable_grad():
                self._known[key] = measure_step(module, self._batch, trainer.optimizers, prefixes, context)
        return self._known[key]

    def _forgotten(self) -> Iterator[Parameter]:
        for schedule in self._session.schedules:
            if schedule.drops_state:
                yield from (p for layer in schedule.stack for p in layer.parameters() if not p.requires_grad)

    def _memory(self, step: MeasuredStep, states: Iterable[int]) -> Memory:
        return Memory(self._weights, step.gradients, sum(states), step.activations)

    def _relative(self, step: MeasuredStep) -> StepTime:
        cached = self._time(step, cached=True) / self._full_time if step.prefix.flops else None
        flops = step.forward.flops + step.prefix.flops + step.backward.flops
        return StepTime(self._time(step, cached=False) / self._full_time, cached, flops)

    def _time(self, step: MeasuredStep, cached: bool) -> float:
        passes = step.forward + step.backward
        work = passes if cached else passes + step.prefix
        return work.time_on(self._device) + step.update.time_on(self._device, is_update=True)


def why_unknown(error: Exception) -> str:
    """Say why a step could not be measured, and at which line of the module.

    Args:
        error: What the module has raised.
    """
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not any(folder in frame.filename for folder in _LIBRARIES)]
    where = f" at {Path(own[-1].filename).name}, line {own[-1].lineno}: {own[-1].line}" if own else ""
    if isinstance(error, (DataDependentOutputException, DynamicOutputShapeException)):
        return f"training_step cannot be run on tensors without values, and reads values{where}."
    first = str(error).strip().partition("\n")[0]
    return f"training_step cannot be run on tensors without values ({type(error).__name__}: {first}){where}."
