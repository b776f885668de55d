"""Interleaved timing, and peak memory."""

from __future__ import annotations

import gc
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.saved_results import Figure
from benchmarks.speedtest.contenders import Contender
from benchmarks.speedtest.subjects import Subject

#: Suffix of a contender's name for the median time of its steps.
STEP = ", a step"


def rounds(
    subject: Subject, contenders: Mapping[str, Contender], count: int, folder: Path, say: Callable[[str], None]
) -> list[dict[str, float]]:
    """Seconds of each contender's run and median step, by round; the order rotates by one from round to round."""
    found: list[dict[str, float]] = []
    names = list(contenders)
    for number in range(count):
        seconds: dict[str, float] = {}
        for name in names[number % len(names) :] + names[: number % len(names)]:
            run = contenders[name](subject, folder)
            gc.collect()
            begun = time.perf_counter()
            steps = run()
            seconds[name] = time.perf_counter() - begun
            seconds[f"{name}{STEP}"] = statistics.median(steps)
            say(f"round {number + 1}: {name}: {seconds[name]:.1f} s, a step {seconds[f'{name}{STEP}']:.3f} s")
            del run
        found.append(seconds)
    return found


def ratios(found: list[dict[str, float]], name: str, to: str) -> Figure:
    """How many times faster ``name`` is than ``to``, round by round."""
    return Figure([seconds[to] / seconds[name] for seconds in found])


def peak_memory() -> int:
    """The most memory that this process has ever held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
