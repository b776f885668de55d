"""What the experiments have measured: every table of a README is what its results.csv says."""

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import figures
import measure
import pandas
import pytest
import yaml
from results import Fit, Origin, Results, ResultsError, read_results, write_results
from tables import with_tables

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
MEASURED = sorted(path.parent for path in EXPERIMENTS.glob("*/results.csv"))
ORIGIN = Origin("compare", "python x.py", "0 1", "test_accuracy", "larger", "full", "t", "abc", "torch 1.0")


def name(folder: Path) -> str:
    return folder.name


def some_results(*comparisons: str) -> Results:
    """Two plans, two seeds, of each comparison."""
    results = Results({})
    for place, comparison in enumerate(comparisons or ("compare",)):
        origin = Origin(**{**vars(ORIGIN), "comparison": comparison})
        fits = [
            Fit(
                comparison,
                plan,
                seed,
                {"test_accuracy": round(value + 0.01 * place, 2), "trained_share": share, "steps": 20},
            )
            for plan, share, values in [("full", 1.0, (0.7, 0.8)), ("frozen", 0.25, (0.6, 0.72))]
            for seed, value in enumerate(values)
        ]
        results = results.replaced(origin, fits)
    return results


@pytest.mark.parametrize("folder", MEASURED, ids=name)
def test_the_tables_of_a_readme_are_what_its_results_say(folder):
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert with_tables(text, read_results(folder / "results.csv")) == text


@pytest.mark.parametrize("readme", sorted(EXPERIMENTS.glob("*/README.md")), ids=lambda readme: readme.parent.name)
def test_every_table_is_of_a_comparison_and_every_comparison_has_a_table(readme):
    shown = set(re.findall(r"<!-- results: ([\w*]+)", readme.read_text(encoding="utf-8")))
    there = {path.stem for path in readme.parent.glob("*.yaml") if "plans" in yaml.safe_load(path.read_text())}
    assert shown - {"*"} <= there
    assert shown >= there or "*" in shown


@pytest.mark.parametrize("folder", MEASURED, ids=name)
def test_an_edited_number_is_noticed(folder):
    text = (folder / "README.md").read_text(encoding="utf-8")
    start = text.index("<!-- results: ")
    number = re.search(r"\d\.\d{3}|\d+\.\d", text[start:])
    place = start + number.end() - 1
    edited = text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :]
    assert with_tables(edited, read_results(folder / "results.csv")) == text


@pytest.mark.fast_cases(5)
@pytest.mark.parametrize("folder", MEASURED, ids=name)
def test_the_figure_is_what_the_results_say(folder, tmp_path):
    kept = (folder / "results.svg").read_text(encoding="utf-8")
    copy = tmp_path / "results.csv"
    copy.write_bytes((folder / "results.csv").read_bytes())
    figures.write_figure(tmp_path)
    drawn = (tmp_path / "results.svg").read_text(encoding="utf-8")
    assert re.findall(r"<text[^>]*>([^<]*)<", drawn) == re.findall(r"<text[^>]*>([^<]*)<", kept)
    assert drawn.count("<use") == kept.count("<use")
    assert "results.svg" in (folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("folder", MEASURED, ids=name)
def test_results_are_of_the_plans_and_seeds_of_their_comparison(folder):
    results = read_results(folder / "results.csv")
    for comparison, origin in results.origins.items():
        settings = yaml.safe_load((folder / f"{comparison}.yaml").read_text(encoding="utf-8"))
        assert results.plans(comparison) == list(settings["plans"])
        seeds = settings["seeds"]
        assert origin.seeds.split() == [str(seed) for seed in (range(seeds) if isinstance(seeds, int) else seeds)]
        for plan in results.plans(comparison):
            assert [fit.seed for fit in results.of(comparison) if fit.plan == plan] == list(
                map(int, origin.seeds.split())
            )
        assert origin.baseline == settings["baseline"]


@pytest.mark.parametrize("folder", MEASURED, ids=name)
def test_results_can_be_read_with_pandas(folder):
    frame = pandas.read_csv(folder / "results.csv", comment="#")
    assert {"comparison", "plan", "seed", "seconds", "trained_share"} <= set(frame.columns)
    assert len(frame) == len(read_results(folder / "results.csv").fits)


def test_results_survive_the_file(tmp_path):
    file = tmp_path / "results.csv"
    assert read_results(file) == Results({})
    results = some_results("compare", "compare_200", "compare_1000")
    write_results(file, results)
    assert read_results(file) == results
    assert list(read_results(file).origins) == ["compare", "compare_200", "compare_1000"]
    assert [path.name for path in tmp_path.iterdir()] == ["results.csv"]


@pytest.mark.parametrize("folder", MEASURED, ids=name)
def test_results_that_are_written_again_are_the_same_file(folder, tmp_path):
    write_results(tmp_path / "results.csv", read_results(folder / "results.csv"))
    assert (tmp_path / "results.csv").read_text() == (folder / "results.csv").read_text()


@pytest.mark.parametrize(
    ("metric", "says"), [("test_accuracy", "ran other work"), ("seconds_to_target", "nothing else")]
)
def test_the_file_says_what_its_times_are_worth(metric, says, tmp_path):
    write_results(tmp_path / "results.csv", Results({"compare": Origin(**{**vars(ORIGIN), "metric": metric})}))
    assert says in (tmp_path / "results.csv").read_text()


def test_a_number_that_is_none_is_left_out(tmp_path):
    file = tmp_path / "results.csv"
    write_results(file, Results({"compare": ORIGIN}, (Fit("compare", "full", 0, {"a": float("nan"), "b": 0.5}),)))
    assert read_results(file).fits == (Fit("compare", "full", 0, {"b": 0.5}),)


def test_a_comparison_that_is_measured_again_replaces_its_rows_alone():
    results = some_results("compare", "compare_b")
    again = results.replaced(ORIGIN, [Fit("compare", "full", 0, {"test_accuracy": 0.5})])
    assert again.of("compare") == [Fit("compare", "full", 0, {"test_accuracy": 0.5})]
    assert again.of("compare_b") == results.of("compare_b")


def test_table_holds_mean_spread_and_difference_between_its_markers():
    text = "before\n<!-- results: compare; steps -->\nold\n<!-- end of results -->\nafter\n"
    table = with_tables(text, some_results())
    assert "| full | 0.750 ± 0.071 | - | - | 20.0 ± 0.0 | 100% | 2 |" in table
    assert "| frozen | 0.660 ± 0.085 | -0.090 [-0.217, +0.037] | 0.070 | 20.0 ± 0.0 | 25% | 2 |" in table
    assert table.startswith("before\n<!-- results: compare; steps -->\n\n| plan ")
    assert table.endswith("\n\n<!-- end of results -->\nafter\n")
    assert with_tables(table, some_results()) == table


def test_a_metric_can_be_shown_relative_to_the_baseline_of_the_same_seed():
    with_floor = [
        Fit(fit.comparison, fit.plan, fit.seed, {**fit.values, "majority": (0.5, 0.6)[fit.seed]})
        for fit in some_results().fits
    ]
    shown = "compare; relative test_accuracy, relative test_accuracy above majority"
    table = with_tables(
        f"<!-- results: {shown} -->\n<!-- end of results -->\n", Results({"compare": ORIGIN}, (*with_floor,))
    )
    # 0.6 / 0.7 and 0.72 / 0.8; above the floor 0.1 / 0.2 and 0.12 / 0.2.
    assert "| full | 0.750 ± 0.071 | - | - | 1.000 ± 0.000 | 1.000 ± 0.000 | 100% | 2 |" in table
    assert "| 0.879 ± 0.030 | 0.550 ± 0.071 | 25% | 2 |" in table


def test_a_ratio_leaves_out_seeds_that_lack_a_number():
    fits = (
        Fit("compare", "full", 0, {"test_accuracy": 0.5, "trained_share": 1.0}),
        Fit("compare", "frozen", 0, {"test_accuracy": 0.25, "trained_share": 0.1}),
        Fit("compare", "frozen", 1, {"test_accuracy": 0.4, "trained_share": 0.1}),
        Fit("compare", "slow", 0, {"trained_share": 0.1}),
    )
    text = "<!-- results: compare; relative test_accuracy -->\n<!-- end of results -->\n"
    results = Results({"compare": ORIGIN}, fits)
    assert "| 0.500 | 10% | 2 |" in with_tables(text, results)
    assert "| slow | - | - | - | - | 10% | 0 |" in with_tables(text, results)
    assert figures.figure_of(results).axes


def test_a_second_table_of_a_comparison_shows_another_metric():
    text = "<!-- results: compare by steps -->\n<!-- end of results -->\n"
    table = with_tables(text, some_results())
    assert "| plan | steps | against full |" in table and "| full | 20.0 ± 0.0 | - |" in table
    with pytest.raises(ResultsError, match="has no table of compare_b"):
        with_tables(text, some_results("compare", "compare_b"))


def test_a_table_of_all_comparisons_has_a_column_for_each():
    text = "<!-- results: * -->\n<!-- end of results -->\n"
    assert "| frozen | 0.660 ± 0.085 | 0.670 ± 0.085 |" in with_tables(text, some_results("compare_16", "compare_100"))


def test_a_comparison_without_a_table_is_refused_and_a_table_without_results_says_so():
    with pytest.raises(ResultsError, match="has no table of compare"):
        with_tables("nothing", some_results())
    empty = "<!-- results: compare_b -->\n<!-- end of results -->\n"
    assert (
        with_tables(empty, Results({}))
        == "<!-- results: compare_b -->\n\nNot measured yet.\n\n<!-- end of results -->\n"
    )


def test_many_comparisons_are_drawn_as_lines_and_few_as_panels():
    few, many = some_results("a", "b"), some_results(*"abcdef")
    assert [ax.get_title() for ax in figures.figure_of(few).axes if ax.get_visible()] == ["a", "b"]
    (ax,) = figures.figure_of(many).axes
    assert [label.get_text() for label in ax.get_xticklabels()] == list("abcdef")


def test_fits_of_a_comparison_become_rows_with_their_origin():
    result = SimpleNamespace(metrics={"test_accuracy": 0.5}, steps=3, parameters=8, trainable_parameters=4,
                             mean_trainable=2.0, seconds=1.234)  # fmt: skip
    fits = [
        SimpleNamespace(task=SimpleNamespace(plan=plan, seed=seed), result=result) for seed in (0, 1) for plan in "ab"
    ]
    failed = SimpleNamespace(task=SimpleNamespace(plan="a", seed=2), result=None)
    comparison = SimpleNamespace(
        plans=[SimpleNamespace(name="a"), SimpleNamespace(name="b")], fits=[*fits, failed], seeds=(0, 1, 2),
        metric="test_accuracy", mode="max", baseline="a", test="t",
    )  # fmt: skip
    results = measure.with_comparison(Results({}), Path("folder"), "compare", comparison, "abc")
    assert [(fit.plan, fit.seed) for fit in results.fits] == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    assert results.fits[0].values["trained_share"] == 0.25
    origin = results.origins["compare"]
    assert (origin.commit, origin.baseline, origin.better, origin.seeds) == ("abc", "a", "larger", "0 1 2")
    assert "torch" in origin.versions and "transformers" in origin.versions
    guessed = measure.with_comparison(Results({}), Path("folder"), "compare", comparison, "abc", {1: 0.6})
    assert [fit.values.get("majority") for fit in guessed.fits] == [None, 0.6, None, 0.6]


def test_the_share_of_the_most_frequent_class_is_known_for_each_seed(tmp_path):
    rows = [f"text {number},{label}" for number, label in enumerate("aaab" * 25)]
    (tmp_path / "texts.csv").write_text("\n".join(["text,label", *rows]))

    def fit(seed: int, class_path: str) -> SimpleNamespace:
        arguments = {"data": str(tmp_path / "texts.csv"), "split": [0.5, 0.0, 0.5], "split_seed": seed}
        config = {"data": {"class_path": class_path, "init_args": arguments}}
        return SimpleNamespace(task=SimpleNamespace(plan="a", seed=seed, config=config))

    texts = SimpleNamespace(fits=[fit(seed, "lightning_freeze.TextDataModule") for seed in (0, 0, 1)])
    found = measure.majority_by_seed(texts)
    assert set(found) == {0, 1} and all(0.6 < share < 0.9 for share in found.values())
    assert measure.majority_by_seed(SimpleNamespace(fits=[fit(0, "experiments.vision.digits.Digits")])) == {}


def test_every_commit_that_has_worked_in_a_directory_is_named(tmp_path):
    file = tmp_path / "runs" / "commits.txt"
    first = measure.note_commit(file)
    assert measure.note_commit(file) == first
    file.write_text("0123456789ab\n")
    assert measure.note_commit(file) == f"0123456789ab {first}"


@pytest.mark.slow
@pytest.mark.parametrize("arguments, message", [(["nowhere"], "no experiment 'nowhere'"), ([], "one or more folders")])
def test_wrong_calls_end_with_a_message(arguments, message):
    done = subprocess.run([sys.executable, EXPERIMENTS / "measure.py", *arguments], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and message in done.stderr


def rows_of_the_map() -> dict[str, list[str]]:
    """The cells of each row, by folder."""
    text = (EXPERIMENTS / "README.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("| [`")]
    return {re.match(r"\| \[`(\w+)`\]", line)[1]: [cell.strip() for cell in line.split("|")[1:-1]] for line in lines}


def test_the_map_names_every_experiment():
    folders = {path.parent.name for path in EXPERIMENTS.glob("*/README.md")}
    assert set(rows_of_the_map()) == folders - {"integration"}


@pytest.mark.parametrize("folder", rows_of_the_map())
def test_the_map_tells_what_is_measured(folder):
    _, question, answer, evidence = rows_of_the_map()[folder]
    assert question.endswith("?")
    is_measured = (EXPERIMENTS / folder / "results.csv").exists()
    assert (answer == "not measured yet" or answer.startswith("not measured here:")) != is_measured
    assert bool(evidence) == is_measured


def tables_of(folder: str) -> str:
    """The tables of a README that are made from its results."""
    readme = (EXPERIMENTS / folder / "README.md").read_text(encoding="utf-8")
    return "".join(re.findall(r"<!-- results: .*?<!-- end of results -->", readme, re.DOTALL))


@pytest.mark.parametrize("folder", rows_of_the_map())
def test_numbers_of_the_map_stand_in_the_tables_of_the_folder(folder):
    tables = tables_of(folder)
    for number in re.findall(r"\d\.\d{3}|\d+%", rows_of_the_map()[folder][2]):
        assert number in tables, number


def test_numbers_of_answers_from_several_folders_stand_in_their_tables():
    text = (EXPERIMENTS / "README.md").read_text(encoding="utf-8").split("What more than one folder answers:")[1]
    rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 3
    for question, answer, folders in rows:
        assert question.strip().endswith("?")
        tables = "".join(tables_of(folder) for folder in re.findall(r"\((\w+)/README\.md", folders))
        assert all(number in tables for number in re.findall(r"\d\.\d{3}", answer)), question
