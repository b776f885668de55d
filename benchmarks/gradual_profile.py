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

DATA, FORWARD, BACKWARD, STEP = "data", "forward pass", "backward pass", "optimizer step"
PARTS = (DATA, FORWARD, BACKWARD, STEP)
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

    def mean(self, part: str) -> float:
        """That of one batch, without the first one."""
        return statistics.fmean(batch[part] for batch in self.batches[1:])

    def median(self, part: str) -> float:
        """The same, without what happens now and then."""
        return statistics.median(batch[part] for batch in self.batches[1:])

    def steady(self, part: str) -> float:
        """What the epoch would take if its first batch took no longer than the others."""
        # Lightning fetches the data of the first batch before the batch starts.
        return self.mean(part) * (len(self.batches) - (part == DATA))

    def first_batch(self) -> float:
        """How much longer the first batch takes than the others."""
        return sum(self.batches[0][part] - self.mean(part) for part in PARTS if part != DATA)


class PartsOfSteps(Callback):
    """Measures the parts of each training batch, by epoch. Comes first in the list; :attr:`end` comes last."""

    def __init__(self) -> None:
        self.epochs: list[Epoch] = []
        self.end = _End(self)
        self._last = 0.0

    def on_train_epoch_start(self, *_: Any) -> None:
        self.epochs.append(Epoch())

    def on_train_batch_start(self, *_: Any) -> None:
        batches = self.epochs[-1].batches
        if not batches:
            self._last = time.perf_counter()  # the turn of the other run lies before
        batches.append({})
        self.take(DATA)

    def on_before_zero_grad(self, *_: Any) -> None:
        self.take(FORWARD)

    def on_before_optimizer_step(self, *_: Any) -> None:
        self.take(BACKWARD)

    def on_validation_start(self, *_: Any) -> None:
        self._last = time.perf_counter()

    def take(self, part: str) -> None:
        """Give a part of the batch the time since the last one."""
        self.epochs[-1].batches[-1][part] = self._since()

    def take_validation(self) -> None:
        self.epochs[-1].validation = self._since()

    def _since(self) -> float:
        last, self._last = self._last, time.perf_counter()
        return self._last - last


class _End(Callback):
    """Ends the last part after all other callbacks, so that what they do belongs to it."""

    def __init__(self, parts: PartsOfSteps) -> None:
        self._parts = parts

    def on_train_batch_end(self, *_: Any) -> None:
        self._parts.take(STEP)

    def on_validation_end(self, *_: Any) -> None:
        self._parts.take_validation()


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
    callbacks = (watching, GradualUnfreezing(verbose=False), *cache, watching.end)
    return trained(subject, folder, Finetuned(subject.build()), *callbacks)


def by_part(about: str, plain: Profile, cached: Profile, frozen: Sequence[float]) -> Table:
    """Seconds of each part of both runs.

    Args:
        about: What was trained, and how.
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
    notes = [
        f"{whole / reached:.2f} times as fast with the cache; the count of each part allows {whole / expected:.2f}"
    ]
    return Table("Seconds of a run", rows, about, notes)


def by_epoch(plain: Profile, cached: Profile, frozen: Sequence[float]) -> Table:
    """Milliseconds of the parts of a step of both runs, medians of an epoch."""
    rows = {}
    for number, (share, one, other) in enumerate(zip(frozen, plain.epochs, cached.epochs, strict=True)):
        row: dict[str, str] = {"frozen": f"{share:.0%}"}
        for part, (name, epoch) in itertools.product(PARTS[1:], ((PLAIN, one), (CACHED, other))):
            row[f"{part}, {name}"] = f"{1e3 * epoch.median(part):,.0f}"
        row[f"first batch beyond the others, {PLAIN}"] = f"{1e3 * one.first_batch():,.0f}"
        row[f"first batch beyond the others, {CACHED}"] = f"{1e3 * other.first_batch():,.0f}"
        rows[str(number)] = row
    about = "Medians of an epoch without its first batch; what the first batch takes beyond the mean of the others."
    return Table("Milliseconds of a step, by epoch", rows, about)


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
    about = f"{subject.title}: {subject.sizes}, 1 round in turns of an epoch, {torch.get_num_threads()} threads."
    tables = [by_part(about, plain, cached, frozen), by_epoch(plain, cached, frozen)]
    for table in tables:
        print(table.markdown())
    if options.save:
        name = f"gradual-profile{'-quick' if options.quick else ''}"
        save(name, "Where the time of gradual unfreezing goes", tables, made, options.save)


if __name__ == "__main__":
    main()
