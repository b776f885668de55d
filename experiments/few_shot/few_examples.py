"""The data of this experiment: a few training texts, drawn with a seed, and always the same test texts."""

import random
from functools import cached_property
from typing import Any

from lightning_freeze import TextDataModule
from lightning_freeze.data import Table


class FewExamples(TextDataModule):
    """Text data of which a few training rows are drawn.

    With one seed, the rows of a smaller draw are among those of a larger one.

    Args:
        examples: Number of training rows, equally many of each class.
        split_seed: Seed of the draw.
        **kwargs: As for TextDataModule; `train` is what is drawn from.
    """

    def __init__(self, examples: int = 16, split_seed: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.examples = examples
        self.draw_seed = split_seed

    @cached_property
    def tables(self) -> dict[str, Table]:
        """The rows of each split."""
        tables = super().tables
        if "train" in tables:
            tables["train"] = self._drawn(tables["train"])
        return tables

    def _drawn(self, table: Table) -> Table:
        rows_of: dict[str, list[int]] = {}
        for number, row in enumerate(table.rows):
            rows_of.setdefault(str(row["label"]), []).append(number)
        generator = random.Random(self.draw_seed)
        for label in sorted(rows_of):
            generator.shuffle(rows_of[label])
        share = self.examples // len(rows_of)
        return table.take(sorted(number for rows in rows_of.values() for number in rows[:share]))
