"""Results of a benchmark as files: JSON for programs, and the same content as a Markdown page for people.

Each file says how it was made: command, commit, date, versions, machine. The scripts write it with ``--save``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("lightning-freeze", "torch", "lightning", "transformers")


@dataclass(frozen=True)
class Figure:
    """One measured quantity.

    Attributes:
        values: Its value in each round.
        digits: Decimals to print.
    """

    values: Sequence[float]
    digits: int = 2

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)

    def __str__(self) -> str:
        median, low, high = (f"{value:,.{self.digits}f}" for value in (self.median, self.low, self.high))
        return f"{median} ({low}-{high})" if len(self.values) > 1 else median


Cell = Figure | float | str


@dataclass(frozen=True)
class Table:
    """Rows of figures that were measured under the same conditions.

    Attributes:
        title: What is compared.
        rows: Name of each row to its cells by column; all rows have the same columns.
        about: The conditions: sizes, rounds, threads.
        notes: Sentences below the table.
    """

    title: str
    rows: Mapping[str, Mapping[str, Cell]]
    about: str = ""
    notes: Sequence[str] = ()

    def markdown(self, level: int = 3) -> str:
        columns = list(next(iter(self.rows.values())))
        lines = [["", *columns], ["---"] * (len(columns) + 1)]
        lines += [[name, *(_text(cells[column]) for column in columns)] for name, cells in self.rows.items()]
        parts = [f"{'#' * level} {self.title}", self.about, "\n".join(f"| {' | '.join(line)} |" for line in lines)]
        parts.append("\n".join(f"- {note}" for note in self.notes))
        return "\n\n".join(part for part in parts if part) + "\n"

    def plain(self) -> dict[str, Any]:
        """The table as JSON has it."""
        rows = {name: {column: _plain(cell) for column, cell in cells.items()} for name, cells in self.rows.items()}
        return {"title": self.title, "about": self.about, "rows": rows, "notes": list(self.notes)}


@dataclass(frozen=True)
class Provenance:
    """How a result was made. Take it when the script starts: files may be edited during a long run.

    Attributes:
        command: The command line.
        commit: Hash of the commit that is checked out; ``None`` outside of a git repository.
        is_dirty: Whether files differ from the commit, other than results.
        date: When the run started, in UTC.
        python: Version of Python.
        packages: Installed package to its version.
        machine: Processor, cores, memory and system.
    """

    command: str
    commit: str | None
    is_dirty: bool
    date: str
    python: str
    packages: Mapping[str, str]
    machine: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def now(cls, *packages: str, argv: Sequence[str] | None = None, root: Path = ROOT) -> Provenance:
        """That of the running script.

        Args:
            packages: What else to name the version of.
            argv: The command line, ``sys.argv`` by default.
            root: The repository.
        """
        script, *arguments = argv or sys.argv
        path = Path(script).resolve()
        name = str(path.relative_to(root)) if path.is_relative_to(root) else path.name
        # Where the repository lies on this machine is of no use to others.
        arguments = [each.removeprefix(f"{root}/") for each in arguments]
        commit = _git(root, "rev-parse", "HEAD")
        changes = _git(root, "status", "--porcelain", "--", ".", ":(exclude)benchmarks/results")
        return cls(
            shlex.join(["python", name, *arguments]),
            commit,
            bool(changes),
            datetime.now(timezone.utc).isoformat(timespec="seconds"),
            platform.python_version(),
            {name: found for name in (*PACKAGES, *packages) if (found := _version(name)) is not None},
            machine(),
        )

    def lines(self) -> list[str]:
        """One line of Markdown for each fact."""
        commit = "unknown (not a git repository)" if self.commit is None else f"`{self.commit}`"
        versions = {"Python": self.python, **self.packages}
        return [
            f"- command: `{self.command}`",
            f"- commit: {commit}{', with uncommitted changes' if self.is_dirty else ''}",
            f"- date: {self.date}",
            f"- versions: {', '.join(f'{name} {number}' for name, number in versions.items())}",
            f"- machine: {', '.join(f'{name} {value}' for name, value in self.machine.items())}",
        ]


def save(name: str, title: str, tables: Sequence[Table], made: Provenance, folder: Path = RESULTS) -> Path:
    """Write ``<name>.json`` and ``<name>.md``, replacing those of an earlier run.

    Args:
        name: File name without an ending: lower-case letters, digits, ``-`` and ``_``.
        title: Heading of the page.
        tables: What was measured.
        made: How it was measured.
        folder: Where to write; made if it does not exist.

    Returns:
        The JSON file.
    """
    if not re.fullmatch(r"[a-z0-9_-]+", name):
        raise ValueError(f"name={name!r}: expected lower-case letters, digits, '-' and '_'.")
    folder.mkdir(parents=True, exist_ok=True)
    content = {"title": title, "provenance": asdict(made), "tables": [table.plain() for table in tables]}
    page = [
        f"# {title}",
        "Written by the benchmark itself; run the command again rather than editing this page.",
        "\n".join(made.lines()),
        *(table.markdown(2).rstrip("\n") for table in tables),
    ]
    _write(folder / f"{name}.md", "\n\n".join(page) + "\n")
    _write(folder / f"{name}.json", json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return folder / f"{name}.json"


def add_option(parser: argparse.ArgumentParser) -> None:
    """``--save`` and ``--save-to FOLDER``; both set ``save`` to a folder, which is ``None`` without them."""
    parser.add_argument(
        "--save",
        action="store_const",
        const=RESULTS,
        help="write the tables to benchmarks/results, as JSON and Markdown",
    )
    parser.add_argument("--save-to", dest="save", type=Path, metavar="FOLDER", help="write them to another folder")


def machine() -> dict[str, str]:
    """Processor model, cores that this process may use, memory and operating system."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = {"processor": _processor(), "cores": str(cores)}
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found["memory"] = f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.1f} GiB"
    return {**found, "system": f"{platform.system()} {platform.machine()}"}


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return model.group(1).strip() if model else platform.processor() or "unknown"


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _text(cell: Cell) -> str:
    return f"{cell:,.2f}" if isinstance(cell, float) else str(cell)


def _plain(cell: Cell) -> Any:
    if not isinstance(cell, Figure):
        return cell
    return {"median": cell.median, "low": cell.low, "high": cell.high, "values": list(cell.values)}


def _write(path: Path, text: str) -> None:
    # A run that is interrupted leaves the earlier result whole.
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
