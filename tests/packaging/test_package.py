"""The published package: the contents of the wheel, and dependencies in the versions that are tested."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("build")
    source = tmp_path_factory.mktemp("source")
    ignored = shutil.ignore_patterns("__pycache__")
    for folder in ("lightning_freeze", "tests", "benchmarks"):
        shutil.copytree(ROOT / folder, source / folder, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "dist"]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (built,) = (source / "dist").iterdir()
    return built


@pytest.mark.slow
def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        info = {name.partition(".dist-info/")[2] for name in archive.namelist() if ".dist-info/" in name}
        entry_points = archive.read(next(n for n in archive.namelist() if n.endswith("entry_points.txt"))).decode()
    expected = {str(path.relative_to(ROOT)) for path in (ROOT / "lightning_freeze").rglob("*.py")}
    expected |= {str(path.relative_to(ROOT)) for path in (ROOT / "lightning_freeze").rglob("*.jinja")}
    assert names == expected | {"lightning_freeze/py.typed"}
    assert {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"} <= info
    assert "lightning-freeze = lightning_freeze.cli.command_line:main" in entry_points


@pytest.mark.slow
def test_description_can_be_published(wheel: Path) -> None:
    pytest.importorskip("twine")
    done = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", str(wheel)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def bounds(requirements: list[str]) -> dict[str, str]:
    """The lower bound of each requirement, as a version with three numbers."""
    found = {}
    for requirement in requirements:
        match = re.fullmatch(r"([\w-]+)(?:\[[\w,]+\])?>=([\d.]+)", requirement)
        if match:
            found[match[1]] = ".".join([*match[2].split("."), "0", "0"][:3])
    return found


def test_oldest_versions_are_those_that_are_promised() -> None:
    extras = PROJECT["optional-dependencies"]
    tested_extras = ("cache", "compare", "data", "peft", "report")
    promised = bounds([*PROJECT["dependencies"], *(each for name in tested_extras for each in extras[name])])
    lines = (ROOT / "constraints-oldest.txt").read_text().splitlines()
    tested = dict(line.split("==") for line in lines if "==" in line)
    assert promised.items() <= tested.items()


def test_versions_of_python_are_those_that_the_workflow_runs() -> None:
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    named = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", c)]
    (matrix,) = re.findall(r"python-version: \[(.*)\]", workflow)
    assert re.findall(r"[\d.]+", matrix) == named
    assert PROJECT["requires-python"] == f">={named[0]}"
