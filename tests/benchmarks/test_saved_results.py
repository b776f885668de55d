"""The files that benchmarks write: what they say about how a result was made, and the figures in them."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from benchmarks.saved_results import RESULTS, Figure, Provenance, Table, add_option, machine, save  # noqa: E402


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.com"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    (root / "benchmarks" / "results").mkdir(parents=True)
    (root / "code.py").write_text("one = 1\n")
    (root / "benchmarks" / "results" / "speed.md").write_text("old\n")
    git(root, "init")
    git(root, "add", ".")
    git(root, "commit", "-m", "A commit")
    return root


def table() -> Table:
    rows = {
        "full": {"seconds": Figure([4.0, 2.0, 3.0], digits=1), "times faster": Figure([1.0]), "limit": 1.0},
        "frozen": {"seconds": Figure([1.0, 2.0, 1.5], digits=1), "times faster": Figure([2.0]), "limit": 2.13},
    }
    return Table("BERT", rows, "8 x 128 tokens, 3 rounds.", ["a note"])


def test_a_figure_has_the_median_and_the_range_of_its_rounds() -> None:
    figure = Figure([3.0, 1.0, 1.257])
    assert (figure.median, figure.low, figure.high) == (1.257, 1.0, 3.0)
    assert str(figure) == "1.26 (1.00-3.00)"


def test_a_figure_of_one_round_has_no_range() -> None:
    assert str(Figure([1234.5678], digits=1)) == "1,234.6"


def test_a_table_as_markdown() -> None:
    assert table().markdown() == (
        "### BERT\n\n8 x 128 tokens, 3 rounds.\n\n"
        "|  | seconds | times faster | limit |\n"
        "| --- | --- | --- | --- |\n"
        "| full | 3.0 (2.0-4.0) | 1.00 | 1.00 |\n"
        "| frozen | 1.5 (1.0-2.0) | 2.00 | 2.13 |\n\n"
        "- a note\n"
    )


def test_the_files_hold_the_figures_and_how_they_were_made(repository: Path, tmp_path: Path) -> None:
    made = Provenance.now(argv=[str(repository / "benchmarks" / "speed.py"), "bert-75", "--save"], root=repository)
    written = save("speed-bert-75", "Speed", [table()], made, tmp_path / "new" / "results")
    content = json.loads(written.read_text(encoding="utf-8"))
    assert content["provenance"]["command"] == "python benchmarks/speed.py bert-75 --save"
    assert content["provenance"]["commit"] == git(repository, "rev-parse", "HEAD")
    assert content["provenance"]["is_dirty"] is False
    assert content["provenance"]["packages"]["torch"] == version("torch")
    assert {"lightning", "transformers", "lightning-freeze"} <= set(content["provenance"]["packages"])
    assert content["provenance"]["machine"] == machine()
    seconds = content["tables"][0]["rows"]["full"]["seconds"]
    assert seconds == {"median": 3.0, "low": 2.0, "high": 4.0, "values": [4.0, 2.0, 3.0]}
    page = written.with_suffix(".md").read_text(encoding="utf-8")
    assert page.startswith("# Speed\n")
    assert "`python benchmarks/speed.py bert-75 --save`" in page
    assert content["provenance"]["commit"] in page
    assert "uncommitted" not in page
    assert f"torch {version('torch')}" in page
    assert table().markdown(2).rstrip() in page
    assert sorted(path.name for path in written.parent.iterdir()) == ["speed-bert-75.json", "speed-bert-75.md"]


@pytest.mark.parametrize(("path", "is_dirty"), [("code.py", True), ("new.py", True), ("benchmarks/results/x", False)])
def test_uncommitted_changes_are_marked_but_for_results(repository: Path, path: str, is_dirty: bool) -> None:
    (repository / path).write_text("changed\n")
    made = Provenance.now(root=repository)
    assert made.is_dirty is is_dirty
    assert any("with uncommitted changes" in line for line in made.lines()) is is_dirty


def test_outside_of_a_repository_the_commit_is_unknown(tmp_path: Path) -> None:
    made = Provenance.now(root=tmp_path)
    assert (made.commit, made.is_dirty) == (None, False)
    assert "unknown" in "\n".join(made.lines())


def test_a_folder_in_the_repository_is_named_from_its_root(repository: Path) -> None:
    argv = [str(repository / "benchmarks" / "speed.py"), "--save-to", str(repository / "benchmarks" / "results")]
    made = Provenance.now(argv=argv, root=repository)
    assert made.command == "python benchmarks/speed.py --save-to benchmarks/results"


def test_the_command_names_no_folder_outside_of_the_repository(repository: Path, tmp_path: Path) -> None:
    made = Provenance.now(argv=[str(tmp_path / "elsewhere" / "speed.py"), "two words"], root=repository)
    assert made.command == "python speed.py 'two words'"


def test_the_machine_is_named() -> None:
    found = machine()
    assert found["processor"]
    assert int(found["cores"]) >= 1
    assert found["memory"].endswith(" GiB")


@pytest.mark.parametrize("name", ["", "Speed", "a/b", "../a", "a.b"])
def test_a_name_that_is_no_plain_file_name_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected lower-case letters"):
        save(name, "Speed", [table()], Provenance.now(root=tmp_path), tmp_path)


@pytest.mark.parametrize(
    ("arguments", "folder"), [([], None), (["--save"], RESULTS), (["--save-to", "elsewhere"], Path("elsewhere"))]
)
def test_the_option(arguments: list[str], folder: Path | None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("subjects", nargs="*")
    add_option(parser)
    parsed = parser.parse_args([*arguments, "bert-75"])
    assert (parsed.save, parsed.subjects) == (folder, ["bert-75"])


@pytest.mark.parametrize("script", ["speed", "overhead", "cache_overhead", "cache_store"])
def test_the_benchmarks_save_their_tables(script: str) -> None:
    source = (ROOT / "benchmarks" / f"{script}.py").read_text(encoding="utf-8")
    assert "add_option(parser)" in source
    assert "save(" in source


@pytest.mark.slow
def test_the_cost_of_one_and_of_four_callbacks_is_measured_and_saved(tmp_path: Path) -> None:
    sizes = ["--rounds", "1", "--batches", "2", "--windows", "0"]
    command = [sys.executable, "benchmarks/overhead.py", *sizes, "--save-to", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "overhead.json").read_text())["tables"][0]["rows"]
    names = [name.split(":")[0] for name in rows]
    assert names[0] == "one callback"
    assert "four callbacks" in names
    assert all(cells["time / time by hand"]["median"] > 0 for cells in rows.values())
