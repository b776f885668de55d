"""The script that measures the review experiments: what it skips, and the table that it writes."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

SCRIPT = Path(__file__).parents[2] / "experiments" / "reviews" / "measure.py"


@pytest.fixture
def measure() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(SCRIPT)))


def row(measure, config: str, seed: int, accuracy: float, fingerprint: str | None = None) -> dict[str, str]:
    values = [config, seed, accuracy, 0.5, 0.25, fingerprint or measure.fingerprint(config)]
    return dict(zip(measure.COLUMNS, map(str, values), strict=True))


def test_every_config_is_measured(measure):
    assert sorted(measure.ORDER) == sorted(
        path.stem for path in SCRIPT.parent.glob("*.yaml") if path.stem not in ("base", "compare")
    )


def test_a_finished_run_is_skipped_until_its_config_changes(measure):
    assert measure.is_measured([row(measure, "full", 1, 0.8)], "full", 1)
    assert not measure.is_measured([row(measure, "full", 1, 0.8)], "full", 2)
    assert not measure.is_measured([row(measure, "full", 1, 0.8)], "gradual", 1)
    assert not measure.is_measured([row(measure, "full", 1, 0.8, fingerprint="old")], "full", 1)


def test_results_survive_the_file(measure, tmp_path):
    file = tmp_path / "results.csv"
    assert measure.read_rows(file) == []
    rows = [row(measure, "head_only", 0, 0.7), row(measure, "full", 0, 0.8), row(measure, "full", 1, 0.9)]
    measure.write_atomically(file, measure.to_csv(reversed(rows)))
    assert measure.read_rows(file) == rows
    assert [path.name for path in tmp_path.iterdir()] == ["results.csv"]


def test_table_holds_mean_and_spread_and_goes_between_its_markers(measure, tmp_path, monkeypatch):
    rows = [row(measure, "full", 0, 0.7), row(measure, "full", 1, 0.8), row(measure, "head_only", 0, 0.6)]
    table = measure.to_markdown(rows)
    assert "| [full](full.yaml) | 0.750 ± 0.071 | 0.250 ± 0.071 | 25% | 2 |" in table
    assert "| [head_only](head_only.yaml) | 0.600 | 0.100 | 25% | 1 |" in table
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{measure.BEGIN}\nold\n\n{measure.END}\nafter\n")
    monkeypatch.setitem(measure.put_into_readme.__globals__, "README", readme)
    measure.put_into_readme(table)
    measure.put_into_readme(table)
    assert readme.read_text() == f"before\n{measure.BEGIN}\n{table}\n{measure.END}\nafter\n"
