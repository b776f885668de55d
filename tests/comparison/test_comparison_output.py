"""What a comparison says: the table, the verdict, the Pareto front, the page and the CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lightning_freeze.comparison.comparing import _failures, _notes
from lightning_freeze.comparison.comparison import Comparison
from lightning_freeze.comparison.fits import FitOutcome, FitTask
from lightning_freeze.comparison.metric import metric_of, mode_of
from lightning_freeze.comparison.output.csv_files import fits_csv, plans_csv
from lightning_freeze.comparison.output.files import write_all
from lightning_freeze.comparison.plan_summary import all_pairs, summarise
from lightning_freeze.comparison.records import FitResult
from lightning_freeze.comparison.settings import ComparisonSettings, Mode
from lightning_freeze.errors import ConfigurationError

pytest.importorskip("scipy")

# The plan <b> is as good as "full" in less time; "late" is worse and slower.
VALUES = {"full": [0.80, 0.84, 0.82], "<b>": [0.805, 0.835, 0.821], "late": [0.60, 0.63, 0.62]}
SECONDS = {"full": 100.0, "<b>": 20.0, "late": 150.0}


def outcome(plan: str, seed: int, value: float | None, forgetting: float | None = None) -> FitOutcome:
    task = FitTask(plan, seed, {}, f"fits/{plan}/seed_{seed}", f"{plan}-{seed}")
    if value is None:
        return FitOutcome(task, None, "its process was ended by SIGKILL.")
    result = FitResult({"test_accuracy": value, "test_loss": 1 - value}, "test", "test_accuracy", SECONDS[plan],
                       2**30, "process", 1000, 500, 250.0, 12, forgetting=forgetting)  # fmt: skip
    return FitOutcome(task, result)


def comparison(outcomes: Sequence[FitOutcome], metric: str = "test_accuracy", mode: Mode = "max") -> Comparison:
    plans = list(VALUES)
    return Comparison(
        plans=tuple(summarise(plans, outcomes, metric, mode, "full", "t")),
        pairs=tuple(all_pairs(plans, outcomes, metric, "t")),
        fits=tuple(outcomes),
        metric=metric,
        mode=mode,
        baseline="full",
        test="t",
        seeds=(0, 1, 2),
        notes=("A note.",),
    )


def complete(forgetting: float | None = None) -> list[FitOutcome]:
    return [outcome(plan, seed, value, forgetting) for plan in VALUES for seed, value in enumerate(VALUES[plan])]


def test_the_winner_is_better_than_what_the_test_says_and_no_more() -> None:
    found = comparison(complete())
    assert found.best.name == "<b>"
    assert (found.beaten, found.undecided) == (["late"], ["full"])
    assert [plan.name for plan in found.plans if plan.is_pareto] == ["<b>"]
    text = str(found)
    assert "<b> has the highest mean test_accuracy, 0.8203. It is better than late (p < 0.05, all pairs)." in text
    assert "The seeds do not show that it is better than full." in text
    assert "0.8200 ± 0.0200" in text and "1.0 GiB" in text and "25%" in text and "Note: A note." in text
    assert "forgetting" not in text


def test_a_smaller_loss_wins() -> None:
    found = comparison(complete(), "test_loss", "min")
    assert found.best.name == "<b>"
    assert "lowest mean test_loss" in str(found)


def test_forgetting_has_a_column_where_it_is_measured() -> None:
    assert "forgetting" in str(comparison(complete(0.125))) and "0.125" in str(comparison(complete(0.125)))


def test_fits_that_have_failed_are_missing_from_their_pairs() -> None:
    found = comparison([each for each in complete() if each.task.name != "late, seed 1"] + [outcome("late", 1, None)])
    late = found.plans[2]
    assert (late.failed, len(late.values)) == (1, 2)
    assert late.against is not None and late.against.seeds == 2
    assert "(1 failed)" in str(found)


def test_csv_has_a_row_a_plan_and_a_row_a_fit() -> None:
    found = comparison([*complete()[:-1], outcome("late", 2, None)])
    plans = list(csv.DictReader(io.StringIO(plans_csv(found))))
    assert [row["plan"] for row in plans] == list(VALUES)
    assert plans[0]["difference"] == "" and float(plans[2]["difference"]) < -0.2
    assert float(plans[2]["p_value_holm"]) >= float(plans[2]["p_value"]) > 0
    fits = list(csv.DictReader(io.StringIO(fits_csv(found))))
    assert len(fits) == 9
    assert (fits[-1]["test_accuracy"], fits[-1]["error"]) == ("", "its process was ended by SIGKILL.")
    assert float(fits[0]["test_accuracy"]) == 0.80


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]


def test_the_page_needs_nothing_else_and_escapes_names(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    files = write_all(comparison(complete()), tmp_path)
    assert {file.name for file in files} == {"comparison.html", "comparison.csv", "comparison.json", "fits.csv"}
    text = (tmp_path / "comparison.html").read_text()
    page = _Page(text)
    assert "script" not in page.tags and "b" in page.tags and text.count("<b><") == 0
    assert page.tags.count("svg") == 2 and page.tags.count("table") == 3
    assert all(link.startswith("#") for link in page.links)
    assert "&lt;b&gt; has the highest mean" in text
    data = json.loads((tmp_path / "comparison.json").read_text())
    assert (data["best"], data["beaten"], len(data["fits"])) == ("<b>", ["late"], 9)


@pytest.mark.parametrize(
    ("name", "message"), [("x.htm", "Did you mean '.html'?"), ("no/x.csv", "expected a folder that exists")]
)
def test_files_that_cannot_be_written(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=message):
        comparison(complete()).save(tmp_path / name)


def test_the_metric_and_its_mode() -> None:
    result = complete()[0].result
    assert result is not None
    assert metric_of(result, None) == "test_accuracy"
    with pytest.raises(ConfigurationError, match=r"metric is 'test_acuracy'.* Did you mean 'test_accuracy'?"):
        metric_of(result, "test_acuracy")
    assert (mode_of("test_f1", None), mode_of("val_loss", None), mode_of("score", "min")) == ("max", "min", "min")
    with pytest.raises(ConfigurationError, match="mode is not given, and 'score' does not tell it"):
        mode_of("score", None)


def test_a_plan_without_any_result_is_not_among_those_that_may_be_as_good() -> None:
    outcomes = [outcome("late", seed, None) if plan == "late" else outcome(plan, seed, value)
                for plan, values in VALUES.items() for seed, value in enumerate(values)]  # fmt: skip
    found = comparison(outcomes)
    assert (found.beaten, found.undecided, found.failed) == ([], ["full"], ["late"])
    assert "late has no result: no fit has succeeded." in str(found)
    assert "better than full." in str(found)


def test_seeds_that_failed_for_the_same_reason_share_one_note() -> None:
    other = FitOutcome(outcome("late", 2, None).task, None, "the disk is full.")
    notes = _failures([outcome("late", 0, None), outcome("late", 1, None), other, outcome("full", 0, 0.5)])
    assert notes == [
        "late, seeds 0, 1 have failed: its process was ended by SIGKILL.",
        "late, seed 2 has failed: the disk is full.",
    ]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_metric_that_is_not_finite_does_not_lose_the_comparison(value: float, tmp_path: Path) -> None:
    outcomes = [outcome("late", 0, value), *(each for each in complete() if each.task.name != "late, seed 0")]
    found = comparison(outcomes)
    late = found.plans[2]
    assert late.mean is not None and not math.isfinite(late.mean)
    assert late.spread is not None and math.isnan(late.spread)
    assert [plan.name for plan in found.plans if plan.is_pareto] == ["<b>"]
    assert found.best.name == "<b>"
    assert len(write_all(found, tmp_path)) == 4
    text = (tmp_path / "comparison.json").read_text()
    written = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert next(plan for plan in written["plans"] if plan["name"] == "late")["mean"] is None
    settings = ComparisonSettings({"full": {}, "<b>": {}, "late": {}}, seeds=(0, 1, 2))
    assert "A metric of 'late, seed 0' is NaN or infinite." in _notes(outcomes, settings, 1)


def test_a_mean_of_infinities_of_both_signs_is_nan() -> None:
    both = [outcome("late", 0, math.inf), outcome("late", 1, -math.inf)]
    late = comparison([*both, *(each for each in complete() if each.task.plan != "late")]).plans[2]
    assert late.mean is not None and math.isnan(late.mean)


def test_a_plan_is_not_better_where_the_seeds_that_both_have_say_the_opposite() -> None:
    # Two seeds that the other plan lacks raise the mean of "full"; on each common seed it is worse.
    values = {"full": [0.70, 0.71, 0.705, 0.97, 0.98], "<b>": [0.80, 0.811, 0.805], "late": [0.1, 0.12, 0.115]}
    outcomes = [outcome(plan, seed, value) for plan, each in values.items() for seed, value in enumerate(each)]
    found = comparison(outcomes)
    assert found.best.name == "full"
    test = next(pair.test for pair in found.pairs if {pair.plan, pair.other} == {"full", "<b>"})
    assert test is not None and test.is_significant and test.difference < 0
    assert (found.beaten, found.undecided) == (["late"], ["<b>"])
    assert "The seeds do not show that it is better than <b>." in str(found)
