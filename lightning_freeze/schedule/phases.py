"""A schedule as a pure function of its phases and a small state.

Nothing here touches a model: :func:`advance` maps ``(phases, state, clock)`` to the next state, and the set of layers
that train in a state follows from its phase number alone. So resuming a run means loading the state and applying the
phase.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Literal

from lightning_freeze.errors import ConfigurationError
from lightning_freeze.layers import LayerStack
from lightning_freeze.schedule.triggers import Clock, Pace, State, Trigger


@dataclass(frozen=True)
class Phase:
    """One part of a run, in which a fixed set of layers trains.

    Args:
        train: Selector of what trains in this phase, such as ``"-2:,head"``; all else is frozen.
        until: The trigger that ends the phase and begins the next one. The last phase needs none: it lasts until the
            run ends.
        lr: Factor on the user's learning rate, under the user's scheduler, of everything that trains in this phase;
            0 or more.
        factors: Further factors of single layers in this phase, by selector, times ``lr``: with ``lr=0.5`` and
            ``{"head": 10}`` the head trains at 5 times the user's rate. Later entries win over earlier ones.
    """

    train: str
    until: Trigger | None = None
    lr: float = 1.0
    factors: Mapping[str, float] | None = field(default=None, hash=False)

    def __str__(self) -> str:
        # Checkpoints hold this text, so it must not change.
        rates = ", ".join(f"{name} {value}" for name, value in self._rates.items())
        until = "" if self.until is None else f" until {self.until}"
        return f"{self.train}{f' with {rates}' if rates else ''}{until}"

    def __repr__(self) -> str:
        shown = {"train": self.train, "until": self.until, **self._rates}
        return f"Phase({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    @property
    def rate_words(self) -> str:
        """The factors as text, such as ``" at 0.5 x lr"``; empty for the user's own rates."""
        words = [f"{self.lr:g} x lr"] if self.lr != 1 else []
        words += [f"factors {dict(self.factors)}"] if self.factors else []
        return f" at {', '.join(words)}" if words else ""

    @property
    def _rates(self) -> dict[str, Any]:
        rates = {"lr": self.lr} if self.lr != 1 else {}
        return {**rates, "factors": dict(self.factors)} if self.factors else rates


@dataclass
class Progress:
    """The progress of a schedule; plain data that is stored in a checkpoint.

    Attributes:
        phase: Index of the running phase.
        starts: ``(epoch, optimizer step)`` at which each phase so far began; empty before the first training batch.
        trigger: State of the running phase's trigger.
    """

    phase: int = 0
    starts: list[Clock] = field(default_factory=list)
    trigger: State = field(default_factory=dict)

    def state_dict(self) -> dict[str, Any]:
        """The progress as nested lists, dicts and numbers."""
        return {"phase": self.phase, "starts": [list(clock) for clock in self.starts], "trigger": dict(self.trigger)}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Progress:
        """The inverse of :meth:`state_dict`."""
        starts = [Clock(int(epoch), int(step)) for epoch, step in state["starts"]]
        return cls(phase=int(state["phase"]), starts=starts, trigger=dict(state["trigger"]))


def check_phases(phases: Sequence[Phase]) -> None:
    """Refuse schedules that are empty, can never reach their last phase, or have invalid rates.

    Raises:
        ConfigurationError: Naming the offending phase.
    """
    if isinstance(phases, (str, Phase)) or not isinstance(phases, Sequence):
        raise ConfigurationError(f"phases={phases!r}: expected a list of phases, such as [Phase('head')].")
    if not phases:
        raise ConfigurationError("A schedule needs at least one phase, got none.")
    for number, phase in enumerate(phases, start=1):
        if not isinstance(phase, Phase):
            raise ConfigurationError(f"Phase {number} is {phase!r}; expected Phase(train=..., until=...).")
        if not isinstance(phase.train, str) or not phase.train.strip():
            raise ConfigurationError(
                f"Phase {number} trains {phase.train!r}; expected a selector such as 'head' or '-2:,head'."
            )
        if phase.until is not None and not isinstance(phase.until, Trigger):
            raise ConfigurationError(
                f"Phase {number} ends with {phase.until!r}; expected a trigger such as EpochTrigger(1)."
            )
        _check_rates(number, phase)
        if phase.until is None and number < len(phases):
            raise ConfigurationError(
                f"Phase {number} of {len(phases)} ({phase.train}) has no trigger, so phase {number + 1} would never "
                f"begin; give it one, such as until=EpochTrigger(1)."
            )


def _check_rates(number: int, phase: Phase) -> None:
    if not is_factor(phase.lr):
        raise ConfigurationError(
            f"Phase {number} ({phase.train}) has lr={phase.lr!r}; expected a factor on the user's learning rate: a "
            f"finite number, 0 or more, such as 0.5."
        )
    if phase.factors is not None and not isinstance(phase.factors, Mapping):
        raise ConfigurationError(
            f"Phase {number} ({phase.train}) has factors={phase.factors!r}; expected a map such as {{'head': 10}}."
        )
    for selector, factor in (phase.factors or {}).items():
        if not isinstance(selector, str) or not is_factor(factor):
            raise ConfigurationError(
                f"Phase {number} ({phase.train}) has factors={{{selector!r}: {factor!r}}}; expected a selector and a "
                f"finite number, 0 or more."
            )


def is_factor(value: object) -> bool:
    """Whether a value can be a factor of a learning rate: a finite number, 0 or more."""
    return not isinstance(value, bool) and isinstance(value, Real) and 0 <= float(value) < math.inf


def advance(phases: Sequence[Phase], progress: Progress, clock: Clock) -> Progress:
    """The progress at a training batch that begins at ``clock``; idempotent for an unchanged clock."""
    if not progress.starts:
        return _begin(phases, Progress(phase=progress.phase), clock)
    until = phases[progress.phase].until
    is_last = progress.phase == len(phases) - 1
    if is_last or until is None or not until.fired(progress.trigger, clock):
        return progress
    return _begin(phases, Progress(phase=progress.phase + 1, starts=progress.starts), clock)


def _begin(phases: Sequence[Phase], progress: Progress, clock: Clock) -> Progress:
    until = phases[progress.phase].until
    trigger = {} if until is None else until.start(clock)
    return Progress(phase=progress.phase, starts=[*progress.starts, clock], trigger=trigger)


def observe(phases: Sequence[Phase], progress: Progress, metrics: Mapping[str, float]) -> Progress:
    """The progress after one more validation with these metrics."""
    until = phases[progress.phase].until
    if until is None or not progress.starts:
        return progress
    return Progress(progress.phase, progress.starts, until.observe(progress.trigger, metrics))


def monitors(phases: Sequence[Phase]) -> dict[str, Literal["min", "max"]]:
    """The metrics that the triggers of a schedule watch, with their modes, in order."""
    return {name: mode for phase in phases if phase.until is not None for name, mode in phase.until.monitors}


def earliest_start(phases: Sequence[Phase], phase: int, batch: int, pace: Pace) -> int:
    """Training batch at which the last phase can begin at the earliest, if ``phase`` begins at ``batch``."""
    for until in [p.until for p in phases[phase:-1]]:
        if until is not None:
            batch = until.earliest(batch, pace)
    return batch


def gradual_phases(
    stack: LayerStack, trigger: Trigger, start: str = "head", layers_per_phase: int = 1, stop: str | None = None
) -> list[Phase]:
    """Phases that unfreeze a stack from the top down, the gradual unfreezing of ULMFiT (Howard and Ruder, 2018).

    Args:
        stack: The layers to unfreeze.
        trigger: Ends every phase but the last.
        start: Selector of what trains in the first phase. ``"head"`` means the top layer where a stack has no head, or
            one that is tied to another layer as a whole.
        layers_per_phase: How many more layers train in each phase.
        stop: Selector of the lowest layers to unfreeze; those below stay frozen. ``None``: down to the embeddings.

    Raises:
        ConfigurationError: If a selector matches nothing, ``layers_per_phase`` is not positive, or ``stop`` lies above
            all layers that remain to be unfrozen.
    """
    if isinstance(layers_per_phase, bool) or not isinstance(layers_per_phase, int) or layers_per_phase < 1:
        raise ConfigurationError(
            f"layers_per_phase={layers_per_phase!r}: expected a whole number of layers, 1 or more."
        )
    layers = [layer for layer in stack if not layer.is_bystander]
    names = [layer.name for layer in layers]
    heads = [layer for layer in layers if layer.kind == "head" or layer.name == "head"]
    if start == "head" and not any(layer.parameters() for layer in heads):
        owner = next((layer.name for layer in reversed(layers) if layer.parameters()), names[-1])
        start = ",".join([owner, *(layer.name for layer in heads)])
    first = {layer.name for layer in stack.select(start).layers}
    floors = _lowest_heights(stack, stop, names)
    deepest = max(floors.values(), default=max(layer.height for layer in layers))
    lowest = max((layer for layer in layers if layer.name in first), key=lambda layer: layer.height, default=None)
    if stop is not None and lowest is not None and deepest < lowest.height:
        below = [layer.name for layer in layers if layer.height >= lowest.height]
        raise ConfigurationError(
            f"GradualUnfreezing(stop={stop!r}) lies above start={start!r}, so nothing would be unfrozen; "
            f"expected a layer at or below {lowest.name!r}: {', '.join(below)}."
        )
    # By height: parallel towers are unfrozen together, level by level.
    network_of = _network_of(stack)
    rest = [
        layer
        for layer in layers
        if layer.name not in first and layer.height <= floors.get(network_of.get(layer.tower, -1), deepest)
    ]
    levels = sorted({layer.height for layer in rest})
    phases = [start]
    for begin in range(0, len(levels), layers_per_phase):
        chunk = levels[begin : begin + layers_per_phase]
        phases.append(",".join([*(layer.name for layer in rest if layer.height in chunk), phases[-1]]))
    return [Phase(train, trigger) for train in phases[:-1]] + [Phase(phases[-1])]


def _network_of(stack: LayerStack) -> dict[str, int]:
    """The number of the network of each tower."""
    return {block.tower: number for number, blocks in enumerate(stack.networks) for block in blocks}


def _lowest_heights(stack: LayerStack, stop: str | None, names: Sequence[str]) -> dict[int, int]:
    """The height of the lowest layer that ``stop`` names, by network; -1 stands for layers of no tower."""
    if stop is None:
        return {}
    stops = stack.select(stop).layers
    if not stops:
        raise ConfigurationError(
            f"stop={stop!r} names single parameters; expected layers, one or more of {', '.join(names)}."
        )
    network_of = _network_of(stack)
    floors: dict[int, int] = {}
    for layer in stops:
        network = network_of.get(layer.tower, -1)
        floors[network] = max(layer.height, floors.get(network, 0))
    return floors


def unfrozen_in(trains_in: Sequence[bool], phase: int) -> int:
    """The phase that unfroze a parameter that trains now: 0 if it has trained from the start, or does not train.

    Args:
        trains_in: For each phase, whether the parameter trains.
        phase: The running phase.
    """
    if not trains_in[phase]:
        return 0
    while phase > 0 and trains_in[phase - 1]:
        phase -= 1
    return phase
