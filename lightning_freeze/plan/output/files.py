"""Writes a plan to a file: JSON, a picture, or a page that opens anywhere."""

from __future__ import annotations

import json
from pathlib import Path

from lightning_freeze.errors import ConfigurationError, listing, suggest
from lightning_freeze.pages.rendering import missing_libraries
from lightning_freeze.plan.records import PlanRecord

#: Endings of the files that can be written.
FORMATS = (".html", ".png", ".svg", ".json")


def check_format(path: Path) -> None:
    """Check that a plan can be written to a file.

    Args:
        path: The file.

    Raises:
        ConfigurationError: The ending is another one, the folder does not exist, or the extra is not installed.
    """
    ending = path.suffix.lower()
    if ending not in FORMATS:
        nearest = suggest(ending, FORMATS)
        raise ConfigurationError(f"{path}: expected a file that ends with {listing(FORMATS)}.{nearest}")
    if not path.parent.is_dir():
        raise ConfigurationError(f"{path}: expected a folder that exists, and {path.parent} does not.")
    missing = missing_libraries()
    if ending != ".json" and missing:
        raise ConfigurationError(
            f"{path}: {ending} needs {' and '.join(missing)}: pip install 'lightning-freeze[report]', or write .json."
        )


def write_plan(plan: PlanRecord, path: Path) -> Path:
    """Write a plan; see :meth:`TrainingPlan.save`."""
    check_format(path)
    ending = path.suffix.lower()
    if ending == ".json":
        path.write_text(json.dumps(plan.to_dict(), indent=2) + "\n", encoding="utf-8")
    elif ending == ".html":
        from lightning_freeze.plan.output.page import plan_page

        path.write_text(plan_page(plan), encoding="utf-8")
    else:
        from lightning_freeze.pages.svg import as_svg
        from lightning_freeze.plan.output.figures import draw_figure, pictures_of

        figure = draw_figure(plan, pictures_of(plan))
        if ending == ".svg":
            path.write_text(as_svg(figure, text="#202020", background="#ffffff"), encoding="utf-8")
        else:
            figure.savefig(path, dpi=150)
    return path
