"""What the cache says about itself in one line."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_freeze.cache.gain import Work
from lightning_freeze.cache.prefix import FrozenPrefix
from lightning_freeze.cache.sizes import show_size


def gain_line(prefixes: Sequence[FrozenPrefix], outside: int) -> str:
    """What is computed once, and how much faster that should make a training step.

    Args:
        prefixes: The towers.
        outside: Floating point operations of a batch outside of them.

    Returns:
        One line, empty if no prefix has been checked yet.
    """
    used = [(p, p.current) for p in prefixes if p.off is None and p.current is not None and p.current.checked]
    if not used:
        return ""
    size = max(prefix.batch for prefix, _ in used)
    work = Work(size * sum(k.work.prefix for _, k in used), size * sum(k.work.rest for _, k in used) + outside)
    computing, reading = (size * sum(times) for times in zip(*((k.seconds, k.reading) for _, k in used), strict=True))
    names = ", ".join(f"{p.boundary} of {len(p.tower.blocks)} blocks{_of(p.tower.name)}" for p, _ in used)
    stored = size * sum(k.size for _, k in used)
    rate = work.prefix / computing if computing else 0.0
    return (
        f"Frozen prefix cache: {names} are computed once, {work.share:.0%} of the forward pass. Steps that read "
        f"them back should be {work.speedup(reading, rate):.1f} times as fast: {1e3 * reading:.2g} ms to read a batch "
        f"({show_size(stored / max(reading, 1e-9))}/s), {1e3 * computing:.2g} ms to compute it."
    )


def summary_line(prefixes: Sequence[FrozenPrefix], stored: int) -> str:
    """What has been read back and saved.

    Args:
        prefixes: The towers.
        stored: Bytes that are stored.
    """
    samples = sum(p.tally.samples for p in prefixes)
    hits = sum(p.tally.hits for p in prefixes)
    saved = sum(p.tally.saved for p in prefixes)
    return (
        f"Frozen prefix cache: {hits} of {samples} samples read back ({hits / samples:.0%}), about {saved:.1f} s of "
        f"computing saved, {show_size(stored)} stored."
    )


def _of(tower: str) -> str:
    return f" of the {tower}" if tower else ""
