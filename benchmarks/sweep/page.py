"""The results as a page of documentation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from sweep.known.block_counts import COUNTS

_OUTCOMES = ("pass", "coarser", "said", "not run", "not built", "fail")
_MEANING = {
    "pass": "all that was checked holds",
    "coarser": "fewer blocks than the configuration counts; partition, order and gradients hold",
    "said": "no one order holds in every pass, and the stack says so itself; what else was checked holds",
    "not run": "built, but no inputs were found with which it runs: partition and number of blocks were checked only",
    "not built": "the class cannot be built from its configuration here",
    "fail": "a check failed",
}
#: How the notes on check (d) begin, in rows.py.
_BACKWARD = ("no backward pass", "backward pass in eval mode")
_HEAD = """# Layer coverage

Where `LayerStack` is right, measured: each class is built tiny from its configuration with random weights, its layers
are found from structure and source alone, and then it is run.

    python benchmarks/layer_coverage.py --fresh      (needs the extras vision, benchmark and dev)

{versions}

Checks of each row:

- **a** every parameter stands in exactly one layer
- **b** the layers run in the order of the stack in a real forward pass, and no parameter of a layer is used only after
  a later block has begun
- **c** the number of blocks is what the configuration (or the library's own table, or transformers' marks for gradient
  checkpointing) says, or a formula over it (see *Counts by formula*); stacks that the configuration does not count,
  such as a convolutional backbone, are noted
- **d** with the first layers frozen, at several depths, gradients arrive in all others and only there, and no first
  output of a frozen layer's module requires a gradient

"""


def page(rows: Sequence[dict[str, Any]]) -> str:
    """The whole page in Markdown.

    Args:
        rows: All rows, as plain data.
    """
    parts = (_totals(rows), _exceptions(rows), _gradients(rows), _formulas(rows), _table(rows))
    return _HEAD.format(versions=_versions()) + "".join(parts)


def _versions() -> str:
    found = [f"torch {torch.__version__}", f"transformers {transformers.__version__}"]
    for name in ("timm", "torchvision", "peft"):
        try:
            found.append(f"{name} {__import__(name).__version__}")
        except ImportError:
            continue
    return "Versions: " + ", ".join(found) + "."


def _totals(rows: Sequence[dict[str, Any]]) -> str:
    libraries = list(dict.fromkeys(row["library"] for row in rows))
    counts = Counter((row["library"], row["outcome"]) for row in rows)
    lines = ["## Totals", "", f"| outcome | {' | '.join(libraries)} | all | meaning |"]
    lines.append("|---" * (len(libraries) + 3) + "|")
    for outcome in _OUTCOMES:
        cells = [str(counts[library, outcome]) for library in libraries]
        total = sum(counts[library, outcome] for library in libraries)
        lines.append(f"| {outcome} | {' | '.join(cells)} | {total} | {_MEANING[outcome]} |")
    sizes = [str(sum(row["library"] == library for row in rows)) for library in libraries]
    lines.append(f"| rows | {' | '.join(sizes)} | {len(rows)} | |")
    types = len({row["kind"] for row in rows if row["library"] == "transformers"})
    partly = sum(row["outcome"] == "pass" and bool(row["ran"]) and not _whole(row["ran"]) for row in rows)
    seconds = sum(row["seconds"] for row in rows)
    lines += [
        "",
        f"The rows of transformers are {types} model types: the plain model and one class with a head for each.",
    ]
    passed = sum(row["outcome"] == "pass" for row in rows)
    lines.append(
        f"In {partly} of the {passed} passing rows the inputs reached only some of the layers (see *ran*): order and "
        "gradients were checked there in those only."
    )
    lines.append(f"Process time of all rows: {seconds / 60:.0f} minutes.\n\n")
    return "\n".join(lines)


def _whole(ran: str) -> bool:
    some, _, every = ran.partition("/")
    return some == every


def _exceptions(rows: Sequence[dict[str, Any]]) -> str:
    lines = []
    for outcome in ("fail", "said", "coarser", "not run", "not built"):
        found = [row for row in rows if row["outcome"] == outcome]
        if found:
            lines += [f"## {outcome.capitalize()}: {len(found)}", "", "| class | reason |", "|---|---|"]
            lines += [f"| {row['name']} | {_cell(row['reason'], 320)} |" for row in found]
            lines.append("")
    return "\n".join(lines) + "\n"


def _gradients(rows: Sequence[dict[str, Any]]) -> str:
    """The rows in which check (d) was made in eval mode, or could not be made."""
    found = [(row, note) for row in rows for note in dict.fromkeys(row["notes"]) if note.startswith(_BACKWARD)]
    if not found:
        return ""
    none = sum(note.startswith(_BACKWARD[0]) for _, note in found)
    lines = [
        f"## Gradients checked in part: {len(found)}",
        "",
        f"Check **d** is made in train mode. In {none} of the rows no backward pass could be made at all, in the other "
        f"{len(found) - none} only one in eval mode.",
        "",
        "| class | outcome | what kept it |",
        "|---|---|---|",
    ]
    lines += [f"| {row['name']} | {row['outcome']} | {_cell(note, 320)} |" for row, note in found]
    return "\n".join(lines) + "\n\n"


def _formulas(rows: Sequence[dict[str, Any]]) -> str:
    """The classes whose number of blocks is not read from the configuration in the generic way."""
    names = {row["name"] for row in rows}
    whys: dict[str, list[str]] = {}
    for name, count in COUNTS.items():
        if name in names:
            whys.setdefault(count.why if count.blocks else f"no count: {count.why}", []).append(name)
    lines = [
        "## Counts by formula",
        "",
        "The number of blocks that these classes should have is computed from their configuration by a formula that "
        "follows their own code.",
        "",
        "| classes | formula |",
        "|---|---|",
    ]
    lines += [f"| {', '.join(classes)} | {_cell(why, 400)} |" for why, classes in whys.items()]
    return "\n".join(lines) + "\n\n"


def _table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        "## All rows",
        "",
        "*ran*: layers that ran, of those that hold parameters. *ms*: time to find the layers.",
        "",
    ]
    lines += ["| class | outcome | layers | ran | ms | notes |", "|---|---|---|---|---|---|"]
    for row in rows:
        layers = _cell(row["layers"].removeprefix("LayerStack(").removesuffix(")"), 140)
        notes = _cell("; ".join(dict.fromkeys(row["notes"])), 180)
        lines.append(
            f"| {row['name']} | {row['outcome']} | {layers} | {row['ran']} | {row['milliseconds']} | {notes} |"
        )
    return "\n".join(lines) + "\n"


def _cell(text: str, length: int) -> str:
    text = text.replace("|", "/").replace("<", "&lt;").replace("\n", " ")
    return text if len(text) <= length else text[: length - 3] + "..."
