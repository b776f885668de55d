"""All rows of the sweep, and how each is made."""

from __future__ import annotations

from typing import Any

from sweep import hugging_face
from sweep.rows import Row
from sweep.vision import Timm, Torchvision
from sweep.wrapped import Wrapped

__all__ = ["Row", "examine", "jobs"]

_LIBRARIES: dict[str, Any] = {
    "transformers": hugging_face,
    "timm": Timm,
    "torchvision": Torchvision,
    "torch": Wrapped,
    "wrapped": Wrapped,
}


def jobs() -> list[tuple[str, str, str]]:
    """Library, kind and name of every row."""
    sources = dict.fromkeys(_LIBRARIES.values())
    return [job for source in sources for job in source.catalogue()]


def examine(library: str, kind: str, name: str) -> Row:
    """Make one row."""
    row: Row = _LIBRARIES[library].examine(kind, name)
    return row
