"""The content of a plan, as plain records."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from lightning_freeze.plan.layer_ranges import selector_of
from lightning_freeze.schedule.phases import Phase


@dataclass(frozen=True)
class Memory:
    """Memory of a training step in bytes, by purpose.

    Attributes:
        weights: All parameters and buffers.
        gradients: The gradients of what trains.
        optimizer: The state of the optimizers.
        activations: What the forward pass keeps for the backward pass.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return self.weights + self.gradients + self.optimizer + self.activations


@dataclass(frozen=True)
class StepTime:
    """The predicted time of a training step, relative to one of full fine-tuning.

    Attributes:
        freezing: With what the phase freezes.
        cached: With FrozenPrefixCache in addition, once the samples are stored; ``None`` if nothing can be skipped.
        flops: Floating point operations of the step.
    """

    freezing: float
    cached: float | None
    flops: int


@dataclass(frozen=True)
class PlannedLayer:
    """One layer in one phase.

    Attributes:
        name: Its name.
        size: Number of elements in its parameters.
        trainable: How many of these train.
        rates: The different learning rates of those, ascending: for each the highest one in the phase, under the user's
            scheduler. Schedulers that wait for a metric are assumed not to change.
    """

    name: str
    size: int
    trainable: int
    rates: tuple[float, ...]

    @property
    def status(self) -> str:
        """``"frozen"``, ``"trains"`` or ``"trains in part"``."""
        if not self.trainable:
            return "frozen"
        return "trains" if self.trainable == self.size else "trains in part"


@dataclass(frozen=True)
class PlannedPhase:
    """A part of the run in which the same layers train.

    Attributes:
        number: 1 for the first.
        first_batch: The training batch at which it begins, counted over the whole run.
        last_batch: The batch before which it ends; ``None`` if it is unknown.
        begins_open: Whether it may begin later, because an earlier phase ends on a metric.
        ends_open: Whether it may end later than at ``last_batch``.
        until: The triggers that end it, in words; empty for the last one.
        layers: All layers, in order.
        memory: What a step keeps; ``None`` if it could not be found out.
        time: How long a step takes; ``None`` if it could not be found out.
    """

    number: int
    first_batch: int
    last_batch: int | None
    begins_open: bool
    ends_open: bool
    until: str
    layers: tuple[PlannedLayer, ...]
    memory: Memory | None
    time: StepTime | None

    @property
    def trains(self) -> list[str]:
        """Names of the layers that train, entirely or in part."""
        return [layer.name for layer in self.layers if layer.trainable]

    @property
    def selector(self) -> str:
        """Selector of the layers that train."""
        return selector_of(self.trains, [layer.name for layer in self.layers])

    @property
    def trainable(self) -> int:
        """Number of elements in the parameters that train."""
        return sum(layer.trainable for layer in self.layers)

    @property
    def batches(self) -> int | None:
        """How many batches it lasts, at the least if it is open; ``None`` if it is unknown."""
        return None if self.last_batch is None else self.last_batch - self.first_batch


@dataclass(frozen=True)
class Fitting:
    """The least freezing under which a training step fits in some memory.

    Attributes:
        layers: Selector of what to freeze, for ``LayerFreezing``; empty if nothing has to be frozen.
        memory: What a step then keeps.
    """

    layers: str
    memory: Memory


@dataclass(frozen=True)
class PlanRecord:
    """What a run will do, and cost.

    Attributes:
        phases: The phases that the run reaches, in order.
        full: Memory of a step of full fine-tuning; ``None`` if it could not be found out.
        schedules: The phases of each callback that has any, in the order of the callbacks, with selectors as short as
            can be. ``PhasedFineTuning(plan.schedules[0])`` trains the same layers at the same time.
        batch: Shapes of the tensors in the batch that was planned with, by name.
        batch_size: Samples in a batch.
        batches: Training batches of the run; ``None`` if it has no end.
        batches_per_epoch: Training batches of an epoch.
        cache_bytes: Disk or memory that FrozenPrefixCache needs for the training samples; 0 if it has nothing to skip.
        uses_cache: Whether the run has a FrozenPrefixCache.
        notes: Sentences on what the plan does not know.
        memory_limit: Available memory in bytes, if it was given.
        fitting: The least freezing that fits in this memory; ``None`` if no limit was given, or nothing fits.
    """

    phases: tuple[PlannedPhase, ...]
    full: Memory | None
    schedules: tuple[tuple[Phase, ...], ...]
    batch: dict[str, tuple[int, ...]]
    batch_size: int
    batches: int | None
    batches_per_epoch: int
    cache_bytes: int
    uses_cache: bool
    notes: tuple[str, ...] = field(default=())
    memory_limit: int | None = None
    fitting: Fitting | None = None

    @property
    def parameters(self) -> int:
        """Number of elements in all parameters."""
        return sum(layer.size for layer in self.phases[0].layers)

    def total_time(self, cached: bool = False) -> float | None:
        """Predicted time of all training steps, relative to full fine-tuning; ``None`` if it is not known.

        Open phases count with their earliest end.

        Args:
            cached: Whether with FrozenPrefixCache. The first epoch of the run fills it.
        """
        if self.batches is None or any(phase.time is None or phase.batches is None for phase in self.phases):
            return None
        total = 0.0
        for phase in self.phases:
            assert phase.time is not None and phase.batches is not None
            filling = max(0, min(phase.batches, self.batches_per_epoch - phase.first_batch))
            skips = cached and phase.time.cached is not None
            later = phase.time.cached if skips and phase.time.cached is not None else phase.time.freezing
            total += filling * phase.time.freezing + (phase.batches - filling) * later
        return total / self.batches

    def peak(self) -> Memory | None:
        """The memory of the phase that keeps the most."""
        known = [phase.memory for phase in self.phases if phase.memory is not None]
        return max(known, key=lambda memory: memory.total) if len(known) == len(self.phases) else None

    def fits(self, phase: PlannedPhase) -> bool:
        """Whether a phase fits in the available memory; also true if either is not known."""
        return self.memory_limit is None or phase.memory is None or phase.memory.total <= self.memory_limit

    def to_dict(self) -> dict[str, Any]:
        """The plan as nested dicts, lists and numbers."""
        phases = [
            {**asdict(phase), "trains": phase.trains, "trainable": phase.trainable, "batches": phase.batches}
            for phase in self.phases
        ]
        totals = {"relative_time": self.total_time(), "relative_time_cached": self.total_time(cached=True)}
        schedules = [[str(phase) for phase in phases] for phases in self.schedules]
        return {**asdict(replace(self, schedules=())), "phases": phases, "schedules": schedules, **totals}
