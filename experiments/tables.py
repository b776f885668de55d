"""The tables of an experiment's README, from its ``results.csv``.

A table stands between two markers, which say what it shows::

    <!-- results: compare; test_loss, forgetting/ranking_drop -->
    <!-- end of results -->

The first word names a comparison; after the semicolon follow further metrics, if any. ``compare by test_f1`` shows
another metric than the comparison's own, better in the same direction. ``relative NAME`` is a metric as a multiple of
the baseline's with the same seed, and ``relative NAME above FLOOR`` the same after FLOOR, another metric, is
subtracted from both. ``*`` in place of a comparison gives a table of all of them: a row for each plan, a column for
each comparison. A table of a comparison without results says so.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence
from pathlib import Path

from results import Results, ResultsError, read_results, write_atomically

from lightning_freeze.comparison.output.columns import difference_text
from lightning_freeze.comparison.statistics import PairedTest, corrected, paired_test
from lightning_freeze.layers.wording import percent

_TABLE = re.compile(r"(<!-- results: (?P<what>[^\n]*?) -->\n)(?P<table>.*?)(<!-- end of results -->)", re.DOTALL)
_RELATIVE = re.compile(r"relative (?P<name>\S+)(?: above (?P<floor>\S+))?")
_TESTS = {"t": "Student's paired t-test", "wilcoxon": "Wilcoxon's signed-rank test"}


def update_readme(folder: Path) -> None:
    """Write all tables of a README anew.

    Raises:
        ResultsError: If a comparison has no table.
    """
    readme = folder / "README.md"
    text = with_tables(readme.read_text(encoding="utf-8"), read_results(folder / "results.csv"), str(readme))
    write_atomically(readme, text)


def with_tables(text: str, results: Results, place: str = "README.md") -> str:
    """A README with its tables as the results say.

    Args:
        text: The README.
        results: What was measured.
        place: Its path, for messages.
    """
    shown = [match["what"].split(";")[0].split(" by ")[0].strip() for match in _TABLE.finditer(text)]
    missing = [] if "*" in shown else [name for name in results.origins if name not in shown]
    if missing:
        raise ResultsError(
            f"{place} has no table of {', '.join(missing)}: expected the lines <!-- results: {missing[0]} --> and "
            "<!-- end of results -->, between which it goes."
        )
    return _TABLE.sub(lambda match: f"{match[1]}\n{_table(match['what'], results)}\n{match[4]}", text)


def _table(what: str, results: Results) -> str:
    first, _, names = what.partition(";")
    comparison, _, metric = (part.strip() for part in first.partition(" by "))
    metrics = [name.strip() for name in names.split(",") if name.strip()]
    if comparison == "*":
        return table_of_all(results)
    if comparison not in results.origins:
        return "Not measured yet.\n"
    if metric:
        results = results.by(comparison, metric)
    return table_of(results, comparison, metrics)


def table_of(results: Results, comparison: str, metrics: Sequence[str] = ()) -> str:
    """The table of one comparison: mean ± standard deviation, the difference from the baseline, and what trained.

    Args:
        results: What was measured.
        comparison: The comparison.
        metrics: Further metrics to show, ``relative`` ones among them.
    """
    origin, plans = results.origins[comparison], results.plans(comparison)
    tests = against_baseline(results, comparison)
    titles = ["plan", origin.metric, f"against {origin.baseline}", "p (Holm)", *metrics, "trained on average", "seeds"]
    lines = [_line(titles), _line(["---"] * len(titles))]
    for plan in plans:
        values = results.values(comparison, plan, origin.metric)
        share = statistics.fmean(results.values(comparison, plan, "trained_share").values())
        further = [spread(list(values_of(results, comparison, plan, name).values())) for name in metrics]
        cells = [
            plan,
            spread(list(values.values())),
            difference_text(tests.get(plan), digits=3),
            _p_value(tests.get(plan)),
        ]
        lines.append(_line([*cells, *further, percent(share), str(len(values))]))
    lines += [
        "",
        f"Mean ± standard deviation over seeds; {origin.better} {origin.metric} is better. Differences from "
        f"{origin.baseline} with 95% confidence intervals, which are not corrected; p is that of {_TESTS[origin.test]} "
        "with Holm's correction.",
    ]
    return "\n".join(lines) + "\n"


def table_of_all(results: Results) -> str:
    """A table with a row for each plan and a column for each comparison: mean ± standard deviation."""
    plans = list(dict.fromkeys(fit.plan for fit in results.fits))
    lines = [_line(["plan", *results.origins]), _line(["---"] * (1 + len(results.origins)))]
    for plan in plans:
        cells = [
            spread(list(results.values(name, plan, origin.metric).values())) for name, origin in results.origins.items()
        ]
        lines.append(_line([plan, *cells]))
    metrics = ", ".join(dict.fromkeys(origin.metric for origin in results.origins.values()))
    seeds = sorted({len(origin.seeds.split()) for origin in results.origins.values()})
    counts = " or ".join(map(str, seeds))
    lines += ["", f"{metrics}: mean ± standard deviation over {counts} seed{'s' * (seeds != [1])}."]
    return "\n".join(lines) + "\n"


def against_baseline(results: Results, comparison: str) -> dict[str, PairedTest | None]:
    """The paired test of each plan against the baseline, as ``lightning-freeze compare`` makes it."""
    origin = results.origins[comparison]
    plans = [plan for plan in results.plans(comparison) if plan != origin.baseline]
    baseline = results.values(comparison, origin.baseline, origin.metric)
    kind = "wilcoxon" if origin.test == "wilcoxon" else "t"
    tests = [paired_test(results.values(comparison, plan, origin.metric), baseline, kind) for plan in plans]
    return dict(zip(plans, corrected(tests), strict=True))


def values_of(results: Results, comparison: str, plan: str, name: str) -> dict[int, float]:
    """A number of a plan by seed, or its ratio to that of the baseline with the same seed.

    Args:
        results: What was measured.
        comparison: The comparison.
        plan: The plan.
        name: The number: ``NAME``, ``relative NAME`` or ``relative NAME above FLOOR``.
    """
    relative = _RELATIVE.fullmatch(name)
    if relative is None:
        return results.values(comparison, plan, name)

    def above_floor(of: str) -> dict[int, float]:
        values = results.values(comparison, of, relative["name"])
        floors = results.values(comparison, of, relative["floor"]) if relative["floor"] else dict.fromkeys(values, 0.0)
        return {seed: value - floors[seed] for seed, value in values.items() if seed in floors}

    mine, baseline = above_floor(plan), above_floor(results.origins[comparison].baseline)
    return {seed: mine[seed] / baseline[seed] for seed in mine if baseline.get(seed)}


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation; the mean alone of a single value."""
    if not values:
        return "-"
    mean = statistics.fmean(values)
    digits = 3 if abs(mean) < 10 else 1
    if len(values) == 1 or math.isnan(mean):
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def _p_value(test: PairedTest | None) -> str:
    if test is None or test.corrected is None:
        return "-"
    return "< 0.001" if test.corrected < 0.001 else f"{test.corrected:.3f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |" if cells[0] != "---" else "|" + "|".join(cells) + "|"
