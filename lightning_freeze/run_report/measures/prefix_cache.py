"""What FrozenPrefixCache says of a run."""

from __future__ import annotations

from lightning.pytorch import Trainer

from lightning_freeze.callbacks.frozen_prefix_cache import FrozenPrefixCache


def cache_of(trainer: Trainer) -> FrozenPrefixCache | None:
    """The FrozenPrefixCache of a trainer, if it has one."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return next((callback for callback in callbacks if isinstance(callback, FrozenPrefixCache)), None)


def cache_lines(cache: FrozenPrefixCache) -> list[str]:
    """One sentence for each tower: what the cache did in the last forward pass, and why.

    Args:
        cache: The cache, during or after a fit.
    """
    lines = [f"{tower or 'All layers'}: {decision}" for tower, decision in cache.explain().items()]
    off = [f"{tower or 'All layers'}: switched off, {reason}" for tower, reason in cache.reasons.items()]
    return list(dict.fromkeys([*lines, *(line for line in off if not any("switch off" in each for each in lines))]))
