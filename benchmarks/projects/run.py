"""Runs the core checks on independent packages that build on Lightning, and writes the table of what they found.

    python benchmarks/projects/run.py [NAME ...]

Each project is one script of this folder: the package's own quick start on a little synthetic data. Packages whose
versions agree share an environment. It is made at the first run, with the package from this checkout (about 2 GB for
most, 6 GB for those that need torchvision). A project that is not named keeps its row.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PAGE = ROOT / "docs" / "compatibility.md"
BEGIN, END = "<!-- projects: begin -->", "<!-- projects: end -->"

#: What is installed first. The second is as in constraints-vision.txt: torchvision wants another build of torch.
ENVIRONMENTS = {
    "common": ["torch==2.13.0", "lightning==2.6.6", "pytorch-lightning==2.6.6"],
    "vision": ["torch==2.14.1", "torchvision==0.29.1", "lightning==2.6.6", "pytorch-lightning==2.6.6"],
}
#: The script of each project, what to install for it, and where. Two of them do not say that they need requests.
PROJECTS = {
    "pytorch-forecasting": ("forecasting_tft", "pytorch-forecasting", "common"),
    "chemprop": ("chemprop_mpnn", "chemprop", "common"),
    "pytorch-tabular": ("tabular_ft", "pytorch-tabular requests", "common"),
    "gluonts": ("gluonts_deepar", "gluonts[torch]", "common"),
    "torchgeo": ("torchgeo_segmentation", "torchgeo requests", "vision"),
    "darts": ("darts_transformer", "darts", "common"),
    "neuralforecast": ("neuralforecast_nhits", "neuralforecast", "common"),
    "scvi-tools": ("scvi_vae", "scvi-tools", "common"),
    "lightly": ("lightly_simclr", "lightly", "vision"),
}
COLUMNS = {
    "no-op identical": "no-op",
    "frozen exact": "frozen",
    "unfreezes as said": "unfreezing",
    "rates": "rates",
    "resume": "resume",
    "own save and load": "save and load",
}
HEADER = ["package", "version", "imports", "quick start", "layers", *COLUMNS.values()]


def environment(name: str, packages: list[str], folder: Path) -> Path:
    """The interpreter of an environment that has these packages; what it lacks is installed."""
    python = folder / name / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder / name)], check=True)
    ready = folder / name / "installed.json"
    installed = set(json.loads(ready.read_text())) if ready.exists() else set()
    wanted = {*ENVIRONMENTS[name], *packages}
    if not wanted <= installed:
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        if not installed:
            subprocess.run([*pip, *ENVIRONMENTS[name]], check=True)
        # All in one call, so that what the packages need of one another is weighed together.
        everything = sorted(wanted | installed)
        subprocess.run([*pip, "--editable", str(ROOT), *everything], check=True)
        ready.write_text(json.dumps(everything))
    return python


def check(script: str, python: Path, log: Path) -> dict[str, Any]:
    """Run one project's script and read what it found."""
    with tempfile.TemporaryDirectory() as folder, log.open("w") as output:
        out = Path(folder) / "found.json"
        settings = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        command = [str(python), str(HERE / f"{script}.py"), "--out", str(out)]
        # In a folder of its own: several projects write logs to where they are run.
        code = subprocess.run(command, cwd=folder, env=settings, stdout=output, stderr=subprocess.STDOUT).returncode
        if code or not out.exists():
            raise SystemExit(f"{script} ended with {code}; see {log}")
        found: dict[str, Any] = json.loads(out.read_text())
        return found


def row(found: dict[str, Any]) -> list[str]:
    """The cells of a project; a check that failed stands out and says what was found instead."""
    checks = found["checks"]
    cells = [f"**{words}**" if is_right is False else words for is_right, words in map(_words, checks.values())]
    named = dict(zip(checks, cells, strict=True))
    return [
        found["package"],
        found["version"],
        f"`{found['lightning']}`",
        found["what"],
        named["layers"],
        *(named[title] for title in COLUMNS),
    ]


def _words(check: dict[str, Any]) -> tuple[bool | None, str]:
    return check["is_right"], check["words"].replace("|", "\\|")


def read_rows(page: str) -> dict[str, list[str]]:
    """The rows of the table as it stands, by package."""
    lines = page.partition(BEGIN)[2].partition(END)[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines if line.startswith("| ")]
    return {cells[0]: cells for cells in rows if cells[0] in PROJECTS}


def write_rows(rows: dict[str, list[str]]) -> None:
    """Put the rows into the page, in the order of the projects."""
    page = PAGE.read_text()
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    table = [HEADER, ["---"] * len(HEADER), *(rows[name] for name in PROJECTS if name in rows)]
    lines = "\n".join(f"| {' | '.join(cells)} |" for cells in table)
    PAGE.write_text(f"{before}{BEGIN}\n{lines}\n{END}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which projects; all if none: {', '.join(PROJECTS)}")
    parser.add_argument("--venvs", type=Path, default=ROOT / ".venv-projects", help="folder for the environments")
    options = parser.parse_args()
    unknown = set(options.names) - PROJECTS.keys()
    if unknown:
        parser.error(f"no project is called {', '.join(sorted(unknown))}; there are {', '.join(PROJECTS)}")
    options.venvs.mkdir(parents=True, exist_ok=True)
    failed = []
    for name in options.names or PROJECTS:
        script, packages, where = PROJECTS[name]
        print(f"{name} ...", flush=True)
        python = environment(where, packages.split(), options.venvs.resolve())
        found = check(script, python, options.venvs.resolve() / f"{name}.log")
        write_rows({**read_rows(PAGE.read_text()), name: row(found)})
        for title, outcome in found["checks"].items():
            print(f"  {'NOT OK' if outcome['is_right'] is False else 'ok':6} {title}: {outcome['words']}", flush=True)
        for line in found["warnings"]:
            print(f"  warning: {line}")
        if any(outcome["is_right"] is False for outcome in found["checks"].values()):
            failed.append(name)
    if failed:
        raise SystemExit(f"Not all checks passed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
