"""``speed.py --publish``: everything behind docs/performance.md, of one code, resumable, and a summary of it.

Each part runs in a process of its own and saves its tables. A part whose file is of the same command and the same code
is not run again, so it may take several nights. The code is the same while neither ``_CODE`` nor the script of the
part has changed.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.saved_results import ROOT, Cell, Provenance, Table, save

_BASE = "full fine-tuning"
#: Column of the summary to the contender of the tables.
_COLUMNS = {
    "LayerFreezing": "LayerFreezing",
    "cache, cold": "LayerFreezing + cache, cold",
    "cache, warm": "LayerFreezing + cache, warm",
    "ideal": "ideal, cut by hand",
}
#: What all results depend on, beside the script of the part: commits that change nothing here, such as those of
#: results, docs and other scripts, are of one code.
_CODE = (
    "lightning_freeze",
    "benchmarks/speedtest",
    ":(exclude)benchmarks/speedtest/publish.py",
    "benchmarks/speed.py",
    "benchmarks/saved_results.py",
    "pyproject.toml",
    "constraints.txt",
)
_FASTER, _STEP = f"times faster than {_BASE}", "a step, times faster"


@dataclass(frozen=True)
class Part:
    """One command of a publication.

    Attributes:
        command: The script and its arguments, relative to the root of the repository.
        result: Name of the file that it saves.
    """

    command: tuple[str, ...]
    result: str


def _speed(subject: str, *arguments: str, suffix: str = "") -> Part:
    return Part(("benchmarks/speed.py", subject, *arguments), f"speed-{subject}{suffix}")


#: What ten epochs leave out: the other tools against the cold cache are what they are for.
_IN_BERT_75 = (_BASE, "requires_grad by hand", *(_COLUMNS[name] for name in ("LayerFreezing", "cache, warm", "ideal")))
#: What the tables of first steps leave out.
_WITHOUT_CACHE = (_BASE, "requires_grad by hand", "BackboneFinetuning", "finetuning-scheduler", _COLUMNS["ideal"])
_FIRST_STEPS = ("--batches", "6", "--epochs", "1", "--rounds", "3", "--without", *_WITHOUT_CACHE)
_ONE_ROUND = ("vit-75", "bert-8", "gpt2-classifier", "gpt2-lm", "t5-80", "t5-80-short-source")
#: Three rounds of what is compared most often, one of what takes longest; what most people look at comes first.
PARTS: tuple[Part, ...] = (
    _speed("bert-75", "--rounds", "3", "--fill", suffix="-fill"),
    _speed("gradual", "--rounds", "1", "--fill", "--turns", "--without", _BASE, suffix="-partial-fill-turns"),
    *(_speed(name, "--memory", suffix="-memory") for name in ("t5-80", "gpt2-classifier", "bert-75", "vit-75")),
    _speed("minilm", "--rounds", "3"),
    _speed("bert-75-10-epochs", "--rounds", "3", "--without", *_IN_BERT_75, suffix="-partial"),
    Part(("benchmarks/cache_overhead.py", "--sizes"), "cache_overhead-sizes"),
    Part(("benchmarks/overhead.py",), "overhead"),
    Part(("benchmarks/gradual_profile.py",), "gradual-profile"),
    *(_speed(name, "--rounds", "1") for name in _ONE_ROUND),
    *(_speed(name, *_FIRST_STEPS, suffix="-batches-6-epochs-1-partial") for name in ("bert-75", "t5-80")),
    Part(("benchmarks/plan_accuracy.py", "--rounds", "3"), "plan-accuracy"),
)
#: The same of small models, in minutes.
QUICK_PARTS: tuple[Part, ...] = (
    *(_speed(name, "--quick", "--rounds", "1", suffix="-quick") for name in ("bert-75", "vit-75")),
    _speed("gradual", "--quick", "--rounds", "1", "--turns", suffix="-quick-turns"),
    _speed("bert-75", "--quick", "--memory", suffix="-memory-quick"),
)


def publish(
    parts: Sequence[Part], folder: Path, made: Provenance, say: Callable[[str], None], name: str = "speed"
) -> Path:
    """Run what is missing, and write the summary.

    Args:
        parts: The commands, in their order.
        folder: Where the results are.
        made: How this run was started.
        say: Prints progress.
        name: Name of the summary.

    Returns:
        The summary, a JSON file with a page of the same name beside it.

    Raises:
        RuntimeError: If files differ from the commit, at the start or after a part, or a part fails. What was measured
            before is kept.
    """
    if made.is_dirty or made.commit is None:
        raise RuntimeError("Files differ from the commit: commit them first, so that the numbers are of one code.")
    for number, part in enumerate(parts, start=1):
        command = " ".join(part.command)
        if _is_current(folder / f"{part.result}.json", part, made):
            say(f"{number} of {len(parts)}: {command}: measured before")
            continue
        say(f"{number} of {len(parts)}: {command}")
        begun = time.monotonic()
        if subprocess.run([sys.executable, *part.command, "--save-to", str(folder)], cwd=ROOT, check=False).returncode:
            raise RuntimeError(f"{command} failed. Run the same command again to go on from there.")
        if not _is_current(folder / f"{part.result}.json", part, made):
            raise RuntimeError(f"{command}: files have changed while it ran, so that its numbers are of other code.")
        say(f"{number} of {len(parts)}: {command}: {(time.monotonic() - begun) / 60:.1f} minutes")
    return save(name, "Speed", [summary(parts, folder)], made, folder)


def summary(parts: Sequence[Part], folder: Path) -> Table:
    """One row for each model: how many times as fast as full fine-tuning each set-up is.

    Args:
        parts: The commands whose results are summarised.
        folder: Where the results are.
    """
    rows: dict[str, dict[str, Cell]] = {}
    for part in parts:
        (table, *_) = json.loads((folder / f"{part.result}.json").read_text(encoding="utf-8"))["tables"]
        found = table["rows"]
        if _FASTER not in next(iter(found.values())) or _COLUMNS["LayerFreezing"] not in found:
            continue
        row: dict[str, Cell] = {n: _median(found.get(c), _FASTER) for n, c in _COLUMNS.items()}
        row["a warm step"] = _median(found.get(_COLUMNS["cache, warm"]), _STEP)
        row["a step of the ideal"] = _median(found.get(_COLUMNS["ideal"]), _STEP)
        rows[table["title"]] = row
    about = "How many times as fast as full fine-tuning, medians of the rounds; the pages of the models have the rest."
    return Table("What was measured", rows, about)


def _median(row: dict[str, Any] | None, column: str) -> Cell:
    return "-" if row is None else float(row[column]["median"])


def _is_current(path: Path, part: Part, made: Provenance) -> bool:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["provenance"]
    except (OSError, ValueError, KeyError):
        return False
    is_same = not found["is_dirty"] and _without_saving(found["command"]) == ["python", *part.command]
    return is_same and _is_same_code(found["commit"], made.commit, part.command[0])


def _without_saving(command: str) -> list[str]:
    words = shlex.split(command)
    if "--save-to" in words:
        place = words.index("--save-to")
        del words[place : place + 2]
    return [word for word in words if word != "--save"]


def _is_same_code(one: str | None, other: str | None, script: str) -> bool:
    """Whether two commits have the same code for a script. A commit that is unknown here has not."""
    if one is None or other is None or one == other:
        return one == other
    command = ["git", "diff", "--quiet", one, other, "--", *_CODE, script]
    return subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 0
