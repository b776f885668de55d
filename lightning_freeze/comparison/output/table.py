"""A comparison as text for a terminal."""

from __future__ import annotations

from rich import box
from rich.table import Table
from rich.text import Text

from lightning_freeze.comparison.comparison_record import ComparisonRecord
from lightning_freeze.comparison.output.columns import columns_of, legend, verdict
from lightning_freeze.layers.wording import render

_WIDTH = 160


def comparison_text(comparison: ComparisonRecord) -> str:
    """The plans as a table, followed by the verdict and the notes.

    Args:
        comparison: The comparison.
    """
    columns = columns_of(comparison)
    table = Table(box=box.SIMPLE_HEAD, title="Comparison", title_justify="left", title_style="bold")
    for position, column in enumerate(columns):
        table.add_column(Text(column.title), justify="right" if position else "left", no_wrap=True)
    for plan in comparison.plans:
        # As text, so that nothing in a name is taken for markup.
        table.add_row(*(Text(column.cell(plan)) for column in columns))
    notes = [f"Note: {note}" for note in comparison.notes]
    return "\n".join([render(table, _WIDTH), "", verdict(comparison), legend(comparison), *notes])
