"""The one error that this package raises for a wrong set-up, and the nearest valid choice that it names."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable

from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_freeze.namespaces import Misconfiguration


class ConfigurationError(MisconfigurationException, Misconfiguration, ValueError):
    """A wrong set-up: Lightning's ``MisconfigurationException``, and a ``ValueError`` because some value is wrong."""


#: Set to 1 to see an error with its traceback where it is otherwise worded in one line.
DEBUG_VARIABLE = "LIGHTNING_FREEZE_DEBUG"


def debugging() -> bool:
    """Whether the user wants tracebacks rather than one line."""
    return os.environ.get(DEBUG_VARIABLE, "0") == "1"


def suggest(value: object, choices: Iterable[object]) -> str:
    """Return `` Did you mean 'x'?`` for the choice nearest to ``value``, or an empty string.

    Args:
        value: What the user gave.
        choices: The valid choices.
    """
    names = [str(choice) for choice in choices]
    folded = {name.lower(): name for name in reversed(names)}
    close = difflib.get_close_matches(str(value).lower(), list(folded), n=1, cutoff=0.5)
    return f" Did you mean {folded[close[0]]!r}?" if close else ""


def listing(choices: Iterable[object], limit: int = 12) -> str:
    """Return the choices as one comma-separated line, cut after ``limit`` of them.

    Args:
        choices: The valid choices, in the order to show them.
        limit: How many to show.
    """
    names = [repr(choice) for choice in choices]
    more = f", ... ({len(names) - limit} more)" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
