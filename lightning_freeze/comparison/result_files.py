"""One file for each fit that has ended, so that a comparison goes on where it was."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from lightning_freeze.comparison.fits import FitTask
from lightning_freeze.comparison.records import FitResult
from lightning_freeze.run_report.writing import write_atomically


class StoredFit(NamedTuple):
    """What is in the file of a fit.

    Attributes:
        key: What tells the fit from any other.
        config: Its whole config.
        result: Its measurements.
    """

    key: str
    config: dict[str, Any]
    result: FitResult


def result_file(task: FitTask) -> Path:
    """The file of a fit, beside its folder.

    Args:
        task: The fit.
    """
    return Path(f"{task.directory}.json")


def write_result(task: FitTask, result: FitResult) -> None:
    """Write the file of a fit, complete or not at all.

    Args:
        task: The fit.
        result: Its measurements.

    Raises:
        OSError: If it cannot be written.
    """
    content = {"key": task.key, "plan": task.plan, "seed": task.seed, "config": dict(task.config)}
    text = json.dumps({**content, "result": result.to_dict()}, indent=1, default=str)
    write_atomically(os.fspath(result_file(task)), text + "\n")


def read_result(task: FitTask) -> StoredFit | None:
    """What is in the file of a fit; ``None`` if there is none that can be read.

    Args:
        task: The fit.
    """
    try:
        content = json.loads(result_file(task).read_text(encoding="utf-8"))
        return StoredFit(str(content["key"]), dict(content["config"]), FitResult.from_dict(content["result"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
