"""The records of a history. They hold only numbers, text, lists and dicts, so that checkpoints can hold them."""

from __future__ import annotations

from dataclasses import dataclass, field

#: One number for each layer; ``None`` where there is none.
PerLayer = list[float | None]


@dataclass
class Sample:
    """What is measured in one training batch.

    Attributes:
        step: Position of the batch in the run.
        epoch: Its epoch.
        rates: The highest learning rate of each layer, all factors included; ``None`` for a frozen layer.
        gradients: Norm of the gradient of each layer, before clipping; ``None`` without a gradient.
        relative_gradients: The same, divided by the norm of the layer's weights.
        distances: L2 distance of each layer from its starting weights, divided by the norm of these.
        loss: The training loss of the batch.
        hit_rate: Share of the samples that FrozenPrefixCache has read so far.
        starts_phase: Whether a phase begins with this batch.
    """

    step: int
    epoch: int
    rates: PerLayer
    gradients: PerLayer
    relative_gradients: PerLayer
    distances: PerLayer
    loss: float | None = None
    hit_rate: float | None = None
    starts_phase: bool = False


@dataclass
class Validation:
    """The metrics of one validation.

    Attributes:
        step: Steps that were taken before.
        epoch: The epoch that it belongs to.
        phase: Number of the running phase, 1 for the first.
        metrics: The values by name.
    """

    step: int
    epoch: int
    phase: int
    metrics: dict[str, float]


@dataclass
class PhaseMemory:
    """Memory that the tensors of a training step need, in bytes.

    Attributes:
        weights: All parameters and buffers.
        gradients: The gradients of what trains.
        optimizer: The state of all optimizers.
        full_gradients: The gradients, if every layer trained.
        full_optimizer: The state of all optimizers, if every layer trained.
        allocated: The most that the accelerator had allocated when a backward pass began; ``None`` on the CPU.
    """

    weights: int
    gradients: int
    optimizer: int
    full_gradients: int
    full_optimizer: int
    allocated: int | None = None


@dataclass
class PhaseRecord:
    """A part of the run in which the same layers train.

    Attributes:
        step: Position of its first batch.
        epoch: Epoch of its first batch.
        cause: Why it began, in words.
        trainable: For each layer, how many elements of its parameters train.
        end: Position after its last batch so far.
        batches: Training batches so far.
        timed: How many of them were timed: all but the first.
        seconds: Time of these, from the start of a batch to its end.
        passes: Indices of the frozen layers that backward runs through.
        passes_certain: Whether the structure of the module proves that it runs through all of them.
        lowest: Index of the lowest layer that got a gradient; ``None`` if none was seen.
        memory: What its tensors need; ``None`` if it could not be found out.
    """

    step: int
    epoch: int
    cause: str
    trainable: list[int]
    end: int
    batches: int = 0
    timed: int = 0
    seconds: float = 0.0
    passes: list[int] = field(default_factory=list)
    passes_certain: bool = True
    lowest: int | None = None
    memory: PhaseMemory | None = None

    @property
    def batch_seconds(self) -> float | None:
        """Mean time of a training batch; ``None`` before two have ended."""
        return self.seconds / self.timed if self.timed else None


@dataclass
class Event:
    """Something that happened once: the run was resumed, or ended.

    Attributes:
        step: Steps that were taken before.
        text: What happened, in words.
    """

    step: int
    text: str


@dataclass
class Warned:
    """A warning of the run.

    Attributes:
        step: Steps that were taken before it came for the first time.
        text: Its text.
        times: How often it came.
    """

    step: int
    text: str
    times: int = 1
