"""A plan that can be printed and written to a file."""

from __future__ import annotations

from pathlib import Path

from lightning_freeze.plan.output.files import write_plan
from lightning_freeze.plan.output.table import plan_text
from lightning_freeze.plan.records import PlanRecord


class TrainingPlan(PlanRecord):
    """What a run will do, and cost; ``print`` shows it. See :class:`~lightning_freeze.plan.records.PlanRecord`."""

    def save(self, path: str | Path) -> Path:
        """Write the plan to a file.

        Args:
            path: The file: ``.json`` for all numbers, ``.html`` for a page that needs nothing else, ``.png`` or
                ``.svg`` for the pictures alone. All but JSON need the extra ``report``.

        Raises:
            ConfigurationError: The ending is another one, the folder does not exist, or the extra is not installed.
        """
        return write_plan(self, Path(path))

    def __str__(self) -> str:
        return plan_text(self)
