"""Where the time of gradual unfreezing goes, without and with the cache, by part of a step and by epoch.

    python benchmarks/gradual_profile.py [--quick] [--save]

Both runs alternate after each epoch, in one process, so that the comparison holds on a machine whose speed drifts. The
column "by the count" says what a part would take with the cache if only counted operations mattered: the forward pass
of frozen layers is left out after the first epoch, everything else takes as long as without the cache.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.saved_results import Provenance, Table, add_option, save
from benchmarks.speed import quiet
from benchmarks.speedtest import limits
from benchmarks.speedtest.contenders import Finetuned, Run, trained
from benchmarks.speedtest.subjects import FULL, QUICK, Subject
from benchmarks.speedtest.turns import in_turns
from lightning_freeze import FrozenPrefixCache, GradualUnfreezing

PARTS = ("data", "forward pass", "backward pass", "optimizer step")
FORWARD, BACKWARD, STEP = PARTS[1:]
PLAIN, CACHED = "GradualUnfreezing", "with the cache"


@dataclass
class Epoch:
    """Seconds of one epoch.

    Attributes:
        batches: Of each part of each training batch, the first batch first.
        validation: Of the validation.
    """

    batches: list[dict[str, float]] = field(default_factory=list)
    validation: float = 0.0

    def median(self, part: str) -> float:
        """That of one batch, without the first one if there are more."""
        return statistics.median(batch[part] for batch in self.batches[1:] or self.batches)

    def steady(self, part: str) -> float:
        """What the epoch would take if its first batch took no longer than the others."""
        return self.median(part) * len(self.batches)

    def first_batch(self) -> float:
        """How much longer the first batch takes than the others."""
        return sum(self.batches[0][part] - self.median(part) for part in PARTS)


class PartsOfSteps(Callback):
    """Measures the parts of each training batch, by epoch."""

    def __init__(self) -> None:
        self.epochs: list[Epoch] = []
        self._last = 0.0

    def on_train_epoch_start(self, *_: Any) -> None:
        self.epochs.append(Epoch())

    def on_train_batch_start(self, *_: Any) -> None:
        batches = self.epochs[-1].batches
        batches.append({})
        # The turn of the other run lies before the first batch.
        self._end("data") if len(batches) > 1 else self._begin("data")

    def on_before_zero_grad(self, *_: Any) -> None:
        self._end(FORWARD)

    def on_before_optimizer_step(self, *_: Any) -> None:
        self._end(BACKWARD)

    def on_train_batch_end(self, *_: Any) -> None:
        self._end(STEP)

    def on_validation_start(self, *_: Any) -> None:
        self._last = time.perf_counter()

    def on_validation_end(self, *_: Any) -> None:
        self.epochs[-1].validation = time.perf_counter() - self._last

    def _begin(self, part: str) -> None:
        self.epochs[-1].batches[-1][part] = 0.0
        self._last = time.perf_counter()

    def _end(self, part: str) -> None:
        now = time.perf_counter()
        self.epochs[-1].batches[-1][part] = now - self._last
        self._last = now


@dataclass(frozen=True)
class Profile:
    """One run.

    Attributes:
        seconds: All of it.
        epochs: Parts of its training batches.
    """

    seconds: float
    epochs: Sequence[Epoch]

    def steady(self, part: str) -> float:
        return sum(epoch.steady(part) for epoch in self.epochs)

    def first_batches(self) -> float:
        return sum(epoch.first_batch() for epoch in self.epochs)

    def validation(self) -> float:
        return sum(epoch.validation for epoch in self.epochs)

    def rest(self) -> float:
        return self.seconds - sum(self.steady(part) for part in PARTS) - self.first_batches() - self.validation()


def profiles(subject: Subject, folder: Path) -> tuple[Profile, Profile]:
    """Run both, in turns of an epoch."""
    watching = {PLAIN: PartsOfSteps(), CACHED: PartsOfSteps()}
    runs: dict[str, Run] = {
        PLAIN: _run(subject, folder, watching[PLAIN]),
        CACHED: _run(subject, folder, watching[CACHED], FrozenPrefixCache(verbose=False)),
    }
    found = in_turns(runs)
    plain, cached = (Profile(found[name][0], watching[name].epochs) for name in (PLAIN, CACHED))
    return plain, cached


def _run(subject: Subject, folder: Path, watching: PartsOfSteps, *cache: Callback) -> Run:
    # First in the list, so that what the others do in a batch counts as part of it.
    callbacks = (watching, GradualUnfreezing(verbose=False), *cache)
    return trained(subject, folder, Finetuned(subject.build()), *callbacks)


def by_part(title: str, plain: Profile, cached: Profile, frozen: Sequence[float]) -> Table:
    """Seconds of each part of both runs.

    Args:
        title: What was trained.
        plain: The run without the cache.
        cached: The run with it.
        frozen: For each epoch the share of the forward pass that belongs to frozen layers.
    """
    run = [1.0, *(1 - share for share in frozen[1:])]  # the first epoch fills the cache
    forward = sum(epoch.steady(FORWARD) * share for epoch, share in zip(plain.epochs, run, strict=True))
    validation = sum(epoch.validation * share for epoch, share in zip(plain.epochs, run, strict=True))
    counted = {part: forward if part == FORWARD else plain.steady(part) for part in PARTS}
    seconds = {part: (plain.steady(part), counted[part], cached.steady(part)) for part in PARTS}
    seconds["first batches, beyond the others"] = (plain.first_batches(), plain.first_batches(), cached.first_batches())
    seconds["validation"] = (plain.validation(), validation, cached.validation())
    seconds["before, after and between"] = (plain.rest(), plain.rest(), cached.rest())
    seconds["in all"] = tuple(sum(column) for column in zip(*seconds.values(), strict=True))
    columns = (f"{PLAIN}, s", "by the count, s", f"{CACHED}, s")
    rows = {
        part: {**dict(zip(columns, row, strict=True)), "beyond the count, s": row[2] - row[1]}
        for part, row in seconds.items()
    }
    whole, expected, reached = seconds["in all"]
    notes = [f"{whole / reached:.2f} times as fast with the cache; {whole / expected:.2f} by the count of each part"]
    return Table(f"{title}: seconds of a run", rows, notes=notes)


def by_epoch(title: str, plain: Profile, cached: Profile, frozen: Sequence[float]) -> Table:
    """Milliseconds of the parts of a step of both runs, medians of an epoch."""
    rows = {}
    for number, (share, one, other) in enumerate(zip(frozen, plain.epochs, cached.epochs, strict=True)):
        row: dict[str, str] = {"frozen": f"{share:.0%}"}
        for part, (name, epoch) in itertools.product(PARTS[1:], ((PLAIN, one), (CACHED, other))):
            row[f"{part}, {name}"] = f"{1e3 * epoch.median(part):,.0f}"
        row[f"first batch beyond the others, {PLAIN}"] = f"{1e3 * one.first_batch():,.0f}"
        row[f"first batch beyond the others, {CACHED}"] = f"{1e3 * other.first_batch():,.0f}"
        rows[str(number)] = row
    return Table(f"{title}: milliseconds of a step, by epoch", rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small model")
    add_option(parser)
    options = parser.parse_args()
    made = Provenance.now()
    quiet(torch.get_num_threads())
    subject = (QUICK if options.quick else FULL)["gradual"]()
    frozen = limits.count(subject).frozen
    with tempfile.TemporaryDirectory() as folder:
        plain, cached = profiles(subject, Path(folder))
    tables = [table(subject.title, plain, cached, frozen) for table in (by_part, by_epoch)]
    for table in tables:
        print(table.markdown())
    if options.save:
        name = f"gradual-profile{'-quick' if options.quick else ''}"
        save(name, "Where the time of gradual unfreezing goes", tables, made, options.save)


if __name__ == "__main__":
    main()
