"""Writes a comparison to a file: a page, a table or everything as JSON."""

from __future__ import annotations

import os
from pathlib import Path

from lightning_freeze.comparison.comparison_record import ComparisonRecord
from lightning_freeze.comparison.output.csv_files import fits_csv, plans_csv
from lightning_freeze.errors import ConfigurationError, listing, suggest
from lightning_freeze.run_report.writing import json_text, write_atomically

#: Endings of the files that can be written.
FORMATS = (".html", ".csv", ".json")


def write_comparison(comparison: ComparisonRecord, path: Path) -> Path:
    """Write a comparison.

    Args:
        comparison: The comparison.
        path: The file.

    Raises:
        ConfigurationError: Its ending is another one, or its folder does not exist.
    """
    ending = path.suffix.lower()
    if ending not in FORMATS:
        nearest = suggest(ending, FORMATS)
        raise ConfigurationError(f"{path}: expected a file that ends with {listing(FORMATS)}.{nearest}")
    if not path.parent.is_dir():
        raise ConfigurationError(f"{path}: expected a folder that exists, and {path.parent} does not.")
    if ending == ".html":
        from lightning_freeze.comparison.output.page import comparison_page

        text = comparison_page(comparison)
    elif ending == ".csv":
        text = plans_csv(comparison)
    else:
        text = json_text(comparison.to_dict())
    write_atomically(os.fspath(path), text)
    return path


def write_all(comparison: ComparisonRecord, folder: Path) -> list[Path]:
    """Write the page, the table of plans and the table of fits.

    Args:
        comparison: The comparison.
        folder: Where they go.
    """
    fits = folder / "fits.csv"
    write_atomically(os.fspath(fits), fits_csv(comparison))
    return [write_comparison(comparison, folder / f"comparison{ending}") for ending in FORMATS] + [fits]
