"""Reads a plan that ``lightning-freeze plan --output plan.json`` has written, to compare a run with it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_freeze.errors import ConfigurationError
from lightning_freeze.run_report.history.records import PhaseRecord


@dataclass(frozen=True)
class PlannedNumbers:
    """What a plan says of one phase.

    Attributes:
        trainable: Number of elements that train.
        time: Time of a training step, relative to full fine-tuning; ``None`` if the plan does not know it.
        gradients: Bytes of the gradients; ``None`` if the plan does not know them.
        optimizer: Bytes of the optimizers' state.
    """

    trainable: int
    time: float | None
    gradients: int | None
    optimizer: int | None


def read_plan(path: str | Path) -> list[PlannedNumbers]:
    """Read the phases of a plan.

    Args:
        path: A file that ``TrainingPlan.save`` has written as JSON.

    Raises:
        ConfigurationError: If it cannot be read, or is no plan.
    """
    try:
        plan = json.loads(Path(path).read_text(encoding="utf-8"))
        return [_numbers(phase, bool(plan["uses_cache"])) for phase in plan["phases"]]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"FreezeReport(plan={str(path)!r}): the file cannot be read ({error}).") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ConfigurationError(
            f"FreezeReport(plan={str(path)!r}): expected a file that `lightning-freeze plan --output plan.json` has "
            f"written."
        ) from None


def matched(phases: Sequence[PhaseRecord], plan: Sequence[PlannedNumbers]) -> list[PlannedNumbers | None]:
    """For each phase of a run the one of the plan in which as much trains, looked for in order.

    Args:
        phases: The phases of the run.
        plan: The phases of the plan.
    """
    remaining = list(plan)
    found: list[PlannedNumbers | None] = []
    for phase in phases:
        index = next((i for i, each in enumerate(remaining) if each.trainable == sum(phase.trainable)), None)
        found.append(None if index is None else remaining[index])
        remaining = remaining if index is None else remaining[index + 1 :]
    return found


def _numbers(phase: dict[str, Any], uses_cache: bool) -> PlannedNumbers:
    time, memory = phase["time"], phase["memory"]
    relative = None
    if time is not None:
        relative = float(time["cached"] if uses_cache and time["cached"] is not None else time["freezing"])
    if memory is None:
        return PlannedNumbers(int(phase["trainable"]), relative, None, None)
    return PlannedNumbers(int(phase["trainable"]), relative, int(memory["gradients"]), int(memory["optimizer"]))
