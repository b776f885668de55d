"""What every chart consists of: a figure, a note that says how to read it, and the same as a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Table:
    """The numbers of a chart.

    Attributes:
        columns: The heading of each column. The cells of the first one are text, those of the others numbers.
        rows: The cells.
        text_columns: Indices of further columns that hold text.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: Sequence[int] = ()


@dataclass(frozen=True)
class Chart:
    """One chart.

    Attributes:
        key: Its id in the page.
        title: Its title.
        note: What it shows and how to read it, in one or two sentences.
        draw: Draws it into a figure.
        table: The same as numbers.
        height: Height of the figure in inches.
        width: Its width in inches.
    """

    key: str
    title: str
    note: str
    draw: Callable[[Figure], None]
    table: Table
    height: float
    width: float = 5.6

    @property
    def is_wide(self) -> bool:
        """Whether it takes the whole width of the page."""
        return self.width > 6
