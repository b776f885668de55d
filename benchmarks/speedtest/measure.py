"""Interleaved timing, and peak memory."""

from __future__ import annotations

import gc
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from benchmarks.saved_results import Figure
from benchmarks.speedtest.contenders import Contender
from benchmarks.speedtest.subjects import Subject
from benchmarks.speedtest.turns import in_turns

#: Suffixes of a contender's name: the median time of its steps, and the time of the first one.
STEP = ", a step"
FIRST_STEP = ", the first step"


def rounds(
    subject: Subject,
    contenders: Mapping[str, Contender],
    count: int,
    folder: Path,
    say: Callable[[str], None],
    turns: bool = False,
) -> list[dict[str, float]]:
    """Seconds of each contender's run, median step and first step, by round; the order rotates from round to round.

    Args:
        subject: What is trained.
        contenders: Who trains it.
        count: Number of rounds.
        folder: Where they may write.
        say: Prints progress.
        turns: Whether the contenders of a round alternate after each epoch, rather than after each run.
    """
    found: list[dict[str, float]] = []
    names = list(contenders)
    for number in range(count):
        order = names[number % len(names) :] + names[: number % len(names)]
        seconds: dict[str, float] = {}
        for name, (whole, steps) in _timed(subject, {name: contenders[name] for name in order}, folder, turns):
            median, first = statistics.median(steps), steps[0]
            seconds |= {name: whole, f"{name}{STEP}": median, f"{name}{FIRST_STEP}": first}
            say(f"round {number + 1}: {name}: {whole:.1f} s, a step {median:.3f} s, the first {first:.3f} s")
        found.append(seconds)
    return found


def _timed(
    subject: Subject, contenders: Mapping[str, Contender], folder: Path, turns: bool
) -> Iterator[tuple[str, tuple[float, list[float]]]]:
    """Yield the seconds of each run and of its steps."""
    if turns:
        runs = {name: contender(subject, folder) for name, contender in contenders.items()}
        gc.collect()
        yield from in_turns(runs).items()
        return
    for name, contender in contenders.items():
        run = contender(subject, folder)
        gc.collect()
        begun = time.perf_counter()
        steps = run()
        yield name, (time.perf_counter() - begun, steps)
        del run


def ratios(found: list[dict[str, float]], name: str, to: str) -> Figure:
    """How many times faster ``name`` is than ``to``, round by round."""
    return Figure([seconds[to] / seconds[name] for seconds in found])


def peak_memory() -> int:
    """The most memory that this process has ever held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
