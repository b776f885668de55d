"""The one error that this package raises for a wrong set-up."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from lightning.fabric.utilities.exceptions import MisconfigurationException


class ConfigurationError(MisconfigurationException, ValueError):
    """A wrong set-up: Lightning's ``MisconfigurationException``, and a ``ValueError`` because some value is wrong."""


def closest(name: str, choices: Iterable[str]) -> str:
    """``" Did you mean 'x'?"`` for the nearest choice, or an empty string if none is near."""
    matches = get_close_matches(name, list(choices), n=1, cutoff=0.5)
    return f" Did you mean {matches[0]!r}?" if matches else ""
