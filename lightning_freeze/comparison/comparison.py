"""The result of a comparison: it can be printed, and written to files."""

from __future__ import annotations

from pathlib import Path

from lightning_freeze.comparison.comparison_record import ComparisonRecord
from lightning_freeze.comparison.output.files import write_comparison
from lightning_freeze.comparison.output.table import comparison_text


class Comparison(ComparisonRecord):
    """Which plan wins, at what cost, and how sure that is; ``print`` shows it.

    See :class:`~lightning_freeze.comparison.comparison_record.ComparisonRecord`.
    """

    def save(self, path: str | Path) -> Path:
        """Write the comparison to a file.

        Args:
            path: The file: ``.html`` for a page that needs nothing else, ``.csv`` for a row a plan, ``.json`` for
                everything.

        Raises:
            ConfigurationError: The ending is another one, or the folder does not exist.
        """
        return write_comparison(self, Path(path))

    def __str__(self) -> str:
        return comparison_text(self)
