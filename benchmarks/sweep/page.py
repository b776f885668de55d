"""The results as a page of documentation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
import transformers

_OUTCOMES = ("pass", "coarser", "not run", "not built", "fail")
_MEANING = {
    "pass": "all that was checked holds",
    "coarser": "fewer blocks than the configuration counts; partition, order and gradients hold",
    "not run": "built, but no inputs were found with which it runs: partition and number of blocks were checked only",
    "not built": "the class cannot be built from its configuration here",
    "fail": "a check failed",
}
_HEAD = """# Layer coverage

Where `LayerStack` is right, measured: each class is built tiny from its configuration with random weights, its layers
are found from structure and source alone, and then it is run.

    python benchmarks/layer_coverage.py --fresh

{versions}

Checks of each row:

- **a** every parameter stands in exactly one layer
- **b** the layers run in the order of the stack in a real forward pass, and no parameter of a layer is used only after
  a later block has begun
- **c** the number of blocks is what the configuration (or the library's own table, or transformers' marks for gradient
  checkpointing) says; stacks that the configuration does not count, such as a convolutional backbone, are noted
- **d** with the first layers frozen, at several depths, gradients arrive in all others and only there, and no first
  output of a frozen layer's module requires a gradient

"""


def page(rows: Sequence[dict[str, Any]]) -> str:
    """The whole page in Markdown.

    Args:
        rows: All rows, as plain data.
    """
    return _HEAD.format(versions=_versions()) + _totals(rows) + _exceptions(rows) + _table(rows)


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
    lines.append(f"In {partly} of the passing rows the inputs reached only some of the layers (see *ran*).")
    lines.append(f"Process time of all rows: {seconds / 60:.0f} minutes.\n\n")
    return "\n".join(lines)


def _whole(ran: str) -> bool:
    some, _, every = ran.partition("/")
    return some == every


def _exceptions(rows: Sequence[dict[str, Any]]) -> str:
    lines = []
    for outcome in ("fail", "coarser", "not run", "not built"):
        found = [row for row in rows if row["outcome"] == outcome]
        if found:
            lines += [f"## {outcome.capitalize()}: {len(found)}", "", "| class | reason |", "|---|---|"]
            lines += [f"| {row['name']} | {_cell(row['reason'], 200)} |" for row in found]
            lines.append("")
    return "\n".join(lines) + "\n"


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
