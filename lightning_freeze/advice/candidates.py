"""The plans that a race compares: as entries of a config, and as callbacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lightning.pytorch import Callback

from lightning_freeze.advice.measuring import Measurements
from lightning_freeze.advice.step_triggers import scale_step_triggers, scaled_steps
from lightning_freeze.callbacks import (
    DiscriminativeLR,
    FrozenPrefixCache,
    GradualUnfreezing,
    LayerFreezing,
    PhasedFineTuning,
)
from lightning_freeze.layers import LayerStack
from lightning_freeze.schedule.phases import Phase
from lightning_freeze.schedule.triggers import StepTrigger

Entry = Mapping[str, Any]

FULL = "full fine-tuning"
_CLASSES: dict[str, type] = {
    cls.__name__: cls
    for cls in (DiscriminativeLR, FrozenPrefixCache, GradualUnfreezing, LayerFreezing, PhasedFineTuning, StepTrigger)
}
#: The learning rate at which a head alone is trained: for AdamW, the rate of a small network from scratch.
_HEAD_RATE = 1e-3
#: What the lowest layer keeps of the learning rate under discriminative rates.
_LOWEST_FACTOR = 0.3
# Shares of the run: the probe of LP-FT, and the phases of gradual unfreezing.
_PROBE_SHARE, _PHASES = 0.25, 4


@dataclass(frozen=True)
class Candidate:
    """One plan.

    Attributes:
        name: Its name.
        why: Why it is worth a try.
        entries: The callbacks as a config has them.
        make: Makes the callbacks, where they are not of the classes that :func:`build` knows.
        share: Length of the run, as a share of the whole one, that callbacks which are made are scaled to.
    """

    name: str
    why: str
    entries: tuple[Entry, ...] = ()
    make: Callable[[], list[Callback]] | None = None
    share: float = 1.0

    def at(self, share: float) -> Candidate:
        """The same plan for a run of a share of the length: its triggers that count steps are scaled.

        Args:
            share: Above 0, and 1 for the whole run.
        """
        return replace(self, entries=tuple(_scaled(entry, share) for entry in self.entries), share=share)

    def with_cache(self, folder: str | None) -> Candidate:
        """The same plan with a FrozenPrefixCache.

        Args:
            folder: Its ``cache_dir``; ``None`` keeps hidden states in memory.
        """
        cache = _entry("FrozenPrefixCache", **({} if folder is None else {"cache_dir": folder}))
        return replace(self, entries=(*self.entries, cache))

    def build(self) -> list[Callback]:
        """The callbacks, which print nothing."""
        callbacks: list[Any] = [build(entry) for entry in self.entries] if self.make is None else self.make()
        if self.make is not None and self.share < 1:
            scale_step_triggers(callbacks, self.share)
        for callback in callbacks:
            if hasattr(callback, "verbose"):
                callback.verbose = False
        return callbacks


def build(entry: Any) -> Any:
    """Make the object that an entry of a config describes.

    Args:
        entry: A map with ``class_path`` and ``init_args``; ``train`` and ``until`` for a phase.
    """
    if isinstance(entry, Mapping):
        if "class_path" in entry:
            return _CLASSES[entry["class_path"]](**{k: build(v) for k, v in entry.get("init_args", {}).items()})
        return Phase(**{k: build(v) for k, v in entry.items()}) if "train" in entry else dict(entry)
    return [build(each) for each in entry] if isinstance(entry, list) else entry


def candidates_for(stack: LayerStack, found: Measurements, steps: int, rate: float) -> list[Candidate]:
    """Choose the plans for a module, full fine-tuning first.

    Args:
        stack: Its layers.
        found: What was measured.
        steps: Optimizer steps of the whole run.
        rate: The highest learning rate of the whole run.
    """
    plans = [Candidate(FULL, "the reference"), *_frozen_prefixes(stack, found)]
    blocks = len(stack.blocks)
    faster = round(max(1.0, _HEAD_RATE / rate), 3) if rate > 0 else 1.0
    if "head" in stack and blocks:
        head: dict[str, Any] = {"train": "head", "lr": faster}
        plans.append(
            Candidate("head only", f"the features as they are; the head trains at {faster:g} times the rate",
                      (_entry("PhasedFineTuning", phases=[head]),))
        )  # fmt: skip
        probe = {**head, "until": _entry("StepTrigger", n=max(1, round(_PROBE_SHARE * steps)))}
        plans.append(
            Candidate("head, then all", "a head that fits sends small gradients into the features (LP-FT, 2202.10054)",
                      (_entry("PhasedFineTuning", phases=[probe, {"train": "all"}]),))
        )  # fmt: skip
    if blocks > 1:
        trigger = _entry("StepTrigger", n=max(1, steps // _PHASES))
        per_phase = -(-(blocks + 1) // (_PHASES - 1))
        plans.append(
            Candidate("gradual unfreezing", "from the head down, in four parts (ULMFiT, 1801.06146)",
                      (_entry("GradualUnfreezing", trigger=trigger, layers_per_phase=per_phase),))
        )  # fmt: skip
        decay = round(_LOWEST_FACTOR ** (1 / (blocks + 1)), 3)
        plans.append(
            Candidate("discriminative rates", f"the lowest layer at about {_LOWEST_FACTOR:g} of the rate",
                      (_entry("DiscriminativeLR", decay=decay),))
        )  # fmt: skip
    return plans + _first_layers(stack, found)


def _frozen_prefixes(stack: LayerStack, found: Measurements) -> list[Candidate]:
    blocks = [layer.name for layer in stack.blocks]
    if len(blocks) < 2:
        return []
    if stack.towers:  # a percentage counts each tower
        return [_freezing(f"{share}%", "a part of each tower") for share in (25, 50, 75)]
    depths = {max(1, round(len(blocks) / 4)): "a quarter", max(1, len(blocks) // 2): "half"}
    best = found.best_depth()
    if best is not None and best.name in blocks and best.name != blocks[-1]:
        depths[blocks.index(best.name) + 1] = (
            f"the probe is best after block {best.name}; layers above serve another task"
        )
    else:
        depths[max(1, round(len(blocks) * 3 / 4))] = "three quarters"
    prefix = "embeddings," if "embeddings" in stack else ""
    return [_freezing(f"{prefix}:{depth}", why) for depth, why in sorted(depths.items()) if depth < len(blocks)]


def _first_layers(stack: LayerStack, found: Measurements) -> list[Candidate]:
    """Training the first layers, where their relative gradients are the largest: the input has shifted."""
    blocks = [layer.name for layer in stack.blocks]
    norms = [found.layers[name].relative_norm for name in blocks if name in found.layers]
    if stack.towers or len(norms) < 3 or len(norms) != len(blocks):
        return []
    third = max(1, len(blocks) // 3)
    lower, upper = sum(norms[:third]) / third, sum(norms[-third:]) / third
    if lower <= upper:
        return []
    return [_freezing(f"{third}:", "the first layers have the largest relative gradients (2210.11466)")]


def _freezing(selector: str, why: str) -> Candidate:
    return Candidate(f"freeze {selector}", why, (_entry("LayerFreezing", layers=selector),))


def _entry(name: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": name, "init_args": arguments}


def _scaled(value: Any, share: float) -> Any:
    if isinstance(value, Mapping):
        if value.get("class_path") == "StepTrigger":
            return _entry("StepTrigger", n=scaled_steps(value["init_args"]["n"], share))
        return {k: _scaled(v, share) for k, v in value.items()}
    return (
        [_scaled(each, share) for each in value]
        if isinstance(value, Sequence) and not isinstance(value, str)
        else value
    )
