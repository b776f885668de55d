"""Measure experiments, and write their results, tables and figures.

    python experiments/measure.py medical social_media      # from the repository root, after each prepare.py
    python experiments/measure.py --tables                  # tables and figures of all folders, from results.csv

Every ``compare*.yaml`` of a folder is one comparison: ``lightning-freeze compare`` fits its plans with all seeds. It
may be interrupted at any time and goes on where it was. When a comparison is complete, its fits go to
``results.csv``, and the tables of ``README.md`` and ``results.svg`` are written anew from that file.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from figures import write_figure
from results import Fit, Origin, Results, ResultsError, read_results, write_results
from tables import update_readme

import lightning_freeze
from lightning_freeze import Comparison, TextDataModule, compare
from lightning_freeze.errors import ConfigurationError

EXPERIMENTS = Path(__file__).resolve().parent
ROOT = EXPERIMENTS.parent
_LIBRARIES = ("torch", "lightning", "transformers", "lightning-freeze")


def main() -> None:
    """Measure, or write tables and figures alone."""
    parser = argparse.ArgumentParser(description="Measure experiments, and write their tables and figures.")
    parser.add_argument("folders", nargs="*", metavar="FOLDER", help="folders of experiments (default: all measured)")
    parser.add_argument("--only", metavar="NAME", help="one comparison, such as compare_peptides (default: all)")
    parser.add_argument("--tables", action="store_true", help="only write tables and figures, from results.csv")
    options = parser.parse_args()
    del sys.argv[1:]  # they were ours; LightningCLI warns of arguments that it is not meant to read
    os.chdir(ROOT)  # paths in configs begin here
    try:
        for folder in _folders(options.folders, options.tables):
            if not options.tables:
                measure_folder(folder, options.only)
            update_readme(folder)
            write_figure(folder)
            print(f"written: {folder.relative_to(ROOT)}/results.svg and the tables of README.md")
    except (ResultsError, ConfigurationError) as error:
        sys.exit(f"error: {error}")


def measure_folder(folder: Path, only: str | None = None) -> None:
    """Run the comparisons of a folder, and keep what was measured after each.

    Args:
        folder: The folder.
        only: The name of one comparison; ``None`` for all.

    Raises:
        ResultsError: If there is no such comparison.
    """
    files = sorted(folder.glob("compare*.yaml"))
    chosen = [file for file in files if only in (None, file.stem)]
    if not chosen:
        names = ", ".join(file.stem for file in files) or "none"
        raise ResultsError(f"{folder.name} has no comparison {only or 'compare'!r}; there are: {names}.")
    for file in chosen:
        runs = ROOT / "runs" / folder.name / file.stem
        commits = note_commit(runs / "commits.txt")
        comparison = compare(file, directory=runs)
        print(comparison)
        results = with_comparison(
            read_results(folder / "results.csv"), folder, file.stem, comparison, commits, majority_by_seed(comparison)
        )
        write_results(folder / "results.csv", results)


def majority_by_seed(comparison: Comparison) -> dict[int, float]:
    """What the most frequent class alone would score on the test texts of each seed; nothing for other tasks and data.

    All plans of a comparison with one seed have the same data.

    Args:
        comparison: What ``compare`` returned.
    """
    found: dict[int, float] = {}
    for task in {fit.task.seed: fit.task for fit in comparison.fits}.values():
        if task.config["data"]["class_path"].split(".")[-1] == "TextDataModule":
            majority = TextDataModule(**task.config["data"]["init_args"]).majority
            found |= {task.seed: majority} if majority is not None else {}
    return found


def with_comparison(
    results: Results,
    folder: Path,
    name: str,
    comparison: Comparison,
    commits: str,
    majority: Mapping[int, float] | None = None,
) -> Results:
    """Results with one more comparison.

    Args:
        results: What was measured before.
        folder: The folder of the experiment.
        name: The name of the comparison.
        comparison: What ``compare`` returned.
        commits: The commits of the code.
        majority: What a constant guess would score, by seed, where that is known.
    """
    majority = majority or {}
    origin = Origin(
        comparison=name,
        command=shlex.join(["python", "experiments/measure.py", folder.name]),
        seeds=" ".join(map(str, comparison.seeds)),
        metric=comparison.metric,
        better="larger" if comparison.mode == "max" else "smaller",
        baseline=comparison.baseline,
        test=comparison.test,
        commit=commits,
        versions=versions(),
    )
    order = [plan.name for plan in comparison.plans]
    fits = [
        Fit(
            name,
            fit.task.plan,
            fit.task.seed,
            {
                **fit.result.metrics,
                **({"majority": majority[fit.task.seed]} if fit.task.seed in majority else {}),
                "steps": fit.result.steps,
                "parameters": fit.result.parameters,
                "trainable_parameters": fit.result.trainable_parameters,
                "trained_share": fit.result.mean_trainable / fit.result.parameters,
                "seconds": round(fit.result.seconds, 1),
            },
        )
        for fit in comparison.fits
        if fit.result is not None
    ]
    return results.replaced(origin, sorted(fits, key=lambda fit: (order.index(fit.plan), fit.seed)))


def versions() -> str:
    """What the numbers depend on besides the code here."""
    libraries = [f"{name} {version(name)}" for name in _LIBRARIES]
    return ", ".join([f"Python {platform.python_version()}", *libraries, f"CPU {platform.machine()}"])


def note_commit(file: Path) -> str:
    """Add the commit of the package's code to those that have worked in a directory, and return all of them."""
    here = Path(lightning_freeze.__file__).resolve().parents[1]

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    commit = git("rev-parse", "--short=12", "HEAD") or "unknown"
    if git("status", "--porcelain", "--", "lightning_freeze", "experiments/*.yaml"):
        commit += "+changes"
    known = file.read_text(encoding="utf-8").split() if file.exists() else []
    found = " ".join(dict.fromkeys([*known, commit]))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(found + "\n", encoding="utf-8")
    return found


def _folders(names: list[str], tables: bool) -> list[Path]:
    if not names and not tables:
        raise ResultsError("expected one or more folders, such as medical.")
    if not names:
        return sorted(file.parent for file in EXPERIMENTS.glob("*/results.csv"))
    folders = [EXPERIMENTS / Path(name).name for name in names]
    wrong = [folder.name for folder in folders if not folder.is_dir()]
    if wrong:
        known = sorted(file.parent.name for file in EXPERIMENTS.glob("*/compare*.yaml"))
        raise ResultsError(f"there is no experiment {wrong[0]!r}; there are: {', '.join(dict.fromkeys(known))}.")
    return folders


if __name__ == "__main__":
    main()
