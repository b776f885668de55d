"""Callbacks of any class in words."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lightning.pytorch import Callback

from lightning_freeze.advice.candidates import Entry

_ADDRESS = re.compile(" at 0x[0-9a-f]+")


def described(callbacks: Sequence[Callback]) -> tuple[Entry, ...]:
    """Say what callbacks are: the same words for the same arguments in any process.

    Args:
        callbacks: The callbacks.
    """
    found = []
    for callback in callbacks:
        own = {name: value for name, value in vars(callback).items() if not name.startswith("_")}
        found.append({"class_path": type(callback).__name__, "text": _ADDRESS.sub("", repr(sorted(own.items())))})
    return tuple(found)
