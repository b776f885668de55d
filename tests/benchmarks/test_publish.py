"""Everything behind docs/performance.md is measured on one code, and an interrupted run goes on where it was."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from benchmarks.saved_results import Figure, Provenance, Table, save  # noqa: E402
from benchmarks.speed import file_name, option_parser  # noqa: E402
from benchmarks.speedtest import publish as module  # noqa: E402
from benchmarks.speedtest.publish import PARTS, Part, publish, summary  # noqa: E402

MADE = Provenance("python benchmarks/speed.py --publish", "abc", False, "2026-11-28", "3.11", {})
SCRIPT = f"""
import shlex
import subprocess
import sys
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
from benchmarks.saved_results import Figure, Provenance, Table, save
name, folder = sys.argv[1], Path(sys.argv[-1])
commit = (folder / "commit").read_text() if (folder / "commit").exists() else "abc"
with (folder / "runs").open("a") as runs:
    runs.write(name + chr(10))
if name == "fails" and not (folder / "mended").exists():
    sys.exit(1)
made = Provenance(shlex.join(["python", "part.py", *sys.argv[1:]]), commit, False, "2026-11-28", "3.11", {{}})
rows = {{n: {{"times faster than full fine-tuning": Figure([f]), "a step, times faster": Figure([f])}}
        for n, f in (("full fine-tuning", 1.0), ("LayerFreezing", 2.0), ("ideal, cut by hand", 4.0))}}
save(name, name, [Table(name + " model", rows)], made, folder)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "part.py").write_text(SCRIPT)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    return tmp_path


def parts(*names: str) -> list[Part]:
    return [Part(("part.py", name), name) for name in names]


def test_an_interrupted_publication_goes_on_where_it_was(folder: Path) -> None:
    with pytest.raises(RuntimeError, match=r"part.py fails failed. Run the same command again"):
        publish(parts("one", "fails", "two"), folder, MADE, lambda _: None)
    (folder / "mended").touch()
    said: list[str] = []
    path = publish(parts("one", "fails", "two"), folder, MADE, said.append)
    assert (folder / "runs").read_text().split() == ["one", "fails", "fails", "two"]
    assert "measured before" in said[0]
    page = path.with_suffix(".md").read_text()
    assert "| one model | 2.00 | - | - | 4.00 | - | 4.00 |" in page
    assert "- commit: `abc`" in page


def test_results_of_another_commit_or_command_are_measured_again(folder: Path) -> None:
    publish([Part(("part.py", "one", "--rounds", "3"), "one")], folder, MADE, lambda _: None)
    publish(parts("one"), folder, MADE, lambda _: None)
    (folder / "commit").write_text("def")
    publish(parts("one"), folder, replace(MADE, commit="def"), lambda _: None)
    assert (folder / "runs").read_text().split() == ["one"] * 3


def test_a_part_during_which_files_change_is_no_part_of_the_publication(folder: Path) -> None:
    (folder / "commit").write_text("def")
    with pytest.raises(RuntimeError, match=r"part.py one: files have changed while it ran"):
        publish(parts("one", "two"), folder, MADE, lambda _: None)
    assert (folder / "runs").read_text().split() == ["one"]
    assert not (folder / "speed.json").exists()


def test_results_of_the_same_code_are_kept(folder: Path) -> None:
    def commit(changed: str) -> str:
        (folder / changed).parent.mkdir(parents=True, exist_ok=True)
        with (folder / changed).open("a") as file:
            file.write("# more\n")
        subprocess.run(["git", "add", changed], cwd=folder, check=True)
        who = "-c", "user.name=A", "-c", "user.email=a@b.c"
        subprocess.run(["git", *who, "commit", "--quiet", "--message", changed], cwd=folder, check=True)
        made = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=folder, text=True).strip()
        (folder / "commit").write_text(made)
        return made

    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    same = ("docs/performance.md", "benchmarks/results/one.json", "benchmarks/other.py")
    for changed in ("benchmarks/speed.py", *same, "part.py", "lightning_freeze/layer.py"):
        publish(parts("one"), folder, replace(MADE, commit=commit(changed)), lambda _: None)
    assert (folder / "runs").read_text().split() == ["one"] * 3, "the first, and those of other code"


def test_an_argument_of_two_words_is_one(folder: Path) -> None:
    two_words = Part(("part.py", "one", "--without", "full fine-tuning"), "one")
    for _ in range(2):
        publish([two_words], folder, MADE, lambda _: None)
    assert (folder / "runs").read_text().split() == ["one"]


def test_uncommitted_changes_are_refused(folder: Path) -> None:
    with pytest.raises(RuntimeError, match="commit them first"):
        publish(parts("one"), folder, replace(MADE, is_dirty=True), lambda _: None)
    assert not (folder / "runs").exists()


def test_results_without_ratios_are_no_rows(folder: Path) -> None:
    save("memory", "Memory", [Table("Memory", {"full fine-tuning": {"weights": Figure([1.0])}})], MADE, folder)
    publish(parts("one"), folder, MADE, lambda _: None)
    table = summary([*parts("one"), Part(("part.py", "memory"), "memory")], folder)
    assert list(table.rows) == ["one model"]


def test_every_part_exists_and_has_a_result_of_its_own() -> None:
    assert len({part.result for part in PARTS}) == len(PARTS)
    assert all((ROOT / part.command[0]).is_file() for part in PARTS)
    assert json.dumps([part.command for part in PARTS]).count("--memory") == 4


@pytest.mark.parametrize("part", [part for part in PARTS if part.command[0] == "benchmarks/speed.py"], ids=str)
def test_a_part_leaves_out_contenders_that_exist_and_names_its_file(part: Part) -> None:
    options = option_parser().parse_args(part.command[1:])
    own = {name: getattr(options, name) for name in ("batches", "epochs") if getattr(options, name) is not None}
    assert file_name(*options.subjects, own, options) == part.result


@pytest.mark.slow
def test_the_benchmark_of_a_gpu_can_be_tried_without_one(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/gpu.py", "bert", "--quick", "--device", "cpu", "--save-to", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "+ cache: the same weights as without the cache, bit for bit" in (tmp_path / "gpu-quick.md").read_text()
