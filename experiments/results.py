"""``results.csv`` of an experiment: what was measured, by which command, on which versions.

The file begins with a block of comment lines for each comparison, ``# name: value``, and goes on as CSV with a row for
each fit. ``pandas.read_csv(path, comment="#")`` reads the rows.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

#: Columns that every row has, before and after those of the metrics.
FIRST = ("comparison", "plan", "seed")
LAST = ("steps", "parameters", "trainable_parameters", "trained_share", "seconds")
BUSY = "# seconds: wall time of the fit on a machine that ran other work beside it; do not compare plans by it."
ALONE = "# seconds: wall time of the fit, with nothing else running on the machine."


class ResultsError(Exception):
    """Something that the user can act on; printed without a traceback."""


@dataclass(frozen=True)
class Origin:
    """Where the rows of one comparison come from.

    Attributes:
        comparison: The name of the comparison file, without ``.yaml``.
        command: What measured it, from the repository root.
        seeds: The seeds, separated by spaces.
        metric: The metric that counts.
        better: ``"larger"`` or ``"smaller"``.
        baseline: The plan that the others are tested against.
        test: The paired test over the seeds, ``"t"`` or ``"wilcoxon"``.
        commit: The commit of the code; several, separated by spaces, if it went on after a change of the code.
        versions: Of Python and of the libraries, and the device.
    """

    comparison: str
    command: str
    seeds: str
    metric: str
    better: str
    baseline: str
    test: str
    commit: str
    versions: str


@dataclass(frozen=True)
class Fit:
    """The measurements of one fit.

    Attributes:
        comparison: The comparison that it belongs to.
        plan: The name of the plan.
        seed: The seed.
        values: All numbers by name: metrics, and the columns :data:`LAST`.
    """

    comparison: str
    plan: str
    seed: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class Results:
    """The content of a ``results.csv``.

    Attributes:
        origins: The comparisons, by name, in the order of the file.
        fits: All fits, in the order of the file.
    """

    origins: Mapping[str, Origin]
    fits: tuple[Fit, ...] = ()

    def of(self, comparison: str) -> list[Fit]:
        """The fits of one comparison."""
        return [fit for fit in self.fits if fit.comparison == comparison]

    def plans(self, comparison: str) -> list[str]:
        """The plans of one comparison, in order."""
        return list(dict.fromkeys(fit.plan for fit in self.of(comparison)))

    def values(self, comparison: str, plan: str, name: str) -> dict[int, float]:
        """A number of a plan, by seed; fits that do not have it are left out."""
        mine = [fit for fit in self.of(comparison) if fit.plan == plan]
        return {fit.seed: fit.values[name] for fit in mine if name in fit.values}

    def by(self, comparison: str, metric: str) -> Results:
        """The same, with another metric as the one that counts in a comparison."""
        origin = replace(self.origins[comparison], metric=metric)
        return Results({**self.origins, comparison: origin}, self.fits)

    def replaced(self, origin: Origin, fits: Iterable[Fit]) -> Results:
        """The same with one comparison measured anew. Comparisons are sorted by name."""
        origins = {**self.origins, origin.comparison: origin}
        kept = [fit for fit in self.fits if fit.comparison != origin.comparison]
        names = sorted(origins, key=_natural)
        ordered = sorted([*kept, *fits], key=lambda fit: names.index(fit.comparison))
        return Results({name: origins[name] for name in names}, tuple(ordered))


def read_results(path: Path) -> Results:
    """Read a file; nothing if there is none.

    Raises:
        ResultsError: If a row belongs to no block, or a block lacks a line.
    """
    if not path.exists():
        return Results({})
    lines = path.read_text(encoding="utf-8").splitlines()
    origins = _origins([line for line in lines if line.startswith("#")], path)
    fits = []
    for row in csv.DictReader(line for line in lines if not line.startswith("#")):
        comparison, plan, seed = (row.pop(name) for name in FIRST)
        if comparison not in origins:
            raise ResultsError(f"{path}: a row is of {comparison!r}: expected one of {', '.join(origins)}.")
        numbers = {name: float(value) for name, value in row.items() if value}
        fits.append(Fit(comparison, plan, int(seed), numbers))
    return Results(origins, tuple(fits))


def write_results(path: Path, results: Results) -> None:
    """Write a file, complete or not at all."""
    lines = []
    for origin in results.origins.values():
        lines += [f"# {each.name}: {getattr(origin, each.name)}" for each in fields(Origin)]
        lines.append("#")
    is_timed = any(origin.metric.startswith("seconds") for origin in results.origins.values())
    lines.append(ALONE if is_timed else BUSY)
    write_atomically(path, "\n".join(lines) + "\n" + _rows(results.fits))


def write_atomically(path: Path, text: str) -> None:
    """Write a file in one step, so that an interruption leaves the old one."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _rows(fits: Sequence[Fit]) -> str:
    metrics = sorted({name for fit in fits for name in fit.values if name not in LAST}, key=_natural)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*FIRST, *metrics, *LAST])
    for fit in fits:
        numbers = [_number(fit.values.get(name)) for name in (*metrics, *LAST)]
        writer.writerow([fit.comparison, fit.plan, fit.seed, *numbers])
    return text.getvalue()


def _number(value: float | None) -> str:
    if value is None or math.isnan(value):
        return ""
    return str(int(value)) if value == int(value) and abs(value) >= 10 else f"{value:.6g}"


def _origins(comments: Iterable[str], path: Path) -> dict[str, Origin]:
    blocks: list[dict[str, str]] = []
    names = [each.name for each in fields(Origin)]
    for line in comments:
        name, _, value = line.removeprefix("# ").partition(": ")
        if name == "comparison":
            blocks.append({})
        if name in names and blocks:
            blocks[-1][name] = value
    for block in blocks:
        missing = [name for name in names if name not in block]
        if missing:
            raise ResultsError(f"{path}: the block of {block['comparison']!r} lacks {', '.join(missing)}.")
    return {block["comparison"]: Origin(**block) for block in blocks}


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts ``train_200`` before ``train_1000``."""
    parts: list[tuple[int, str]] = []
    for part in "".join(c if c.isdigit() else f" {c} " for c in name).split():
        parts.append((int(part), "") if part.isdigit() else (-1, part))
    return parts
