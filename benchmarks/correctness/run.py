"""Compares what freezing tools do with what they should do, and prints how far off each one is.

    pip install "lightning-freeze[benchmark]"
    python benchmarks/correctness/run.py --markdown drift.md

Every tool gets the same plan: the head trains alone, and from the second epoch on everything trains at the same rate.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path

from checks import CHECKS, Result, two_processes
from lightning.fabric.utilities.exceptions import MisconfigurationException
from tools import TOOLS


def measure(tool: str) -> dict[str, Result]:
    """All checks of one tool."""
    results = {}
    for title, check in CHECKS.items():
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            try:
                results[title] = check(TOOLS[tool], Path(folder))
            except MisconfigurationException:
                results[title] = Result(False, "refused")
            except Exception as error:  # a crash is a finding
                results[title] = Result(False, f"crash, {type(error).__name__}: {str(error).splitlines()[0][:60]}")
    with tempfile.TemporaryDirectory() as folder:
        ranks, whole = two_processes(tool, Path(folder))
    results["DDP, two ranks against one another"] = ranks
    results["DDP, against one process with the whole batch"] = whole
    return results


def table(results: dict[str, dict[str, Result]]) -> str:
    """One row a check, one column a tool; numbers are the largest absolute difference between any two weights."""
    titles = next(iter(results.values()))
    rows = [["", *results], ["---"] * (len(results) + 1)]
    for title in titles:
        cells = [results[tool][title] for tool in results]
        rows.append([title, *(cell.words if cell.is_right else f"**{cell.words}**" for cell in cells)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--markdown", type=Path, help="file to write the table to, beside printing it")
    parser.add_argument("--tools", nargs="+", choices=list(TOOLS), default=list(TOOLS))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "finetuning_scheduler"):
        logging.getLogger(name).setLevel(logging.ERROR)
    text = table({tool: measure(tool) for tool in options.tools})
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "lightning", "finetuning-scheduler"))
    print(f"{text}\n\n{versions}")
    if options.markdown:
        options.markdown.write_text(f"{text}\n\n{versions}\n")


if __name__ == "__main__":
    main()
