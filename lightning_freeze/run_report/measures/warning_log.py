"""Collects the warnings of a run while they are shown as usual."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TextIO

#: Of no use to readers of a report: they are for developers of libraries.
_FOR_DEVELOPERS = (DeprecationWarning, PendingDeprecationWarning, FutureWarning, ImportWarning, ResourceWarning)


class WarningLog:
    """Passes each warning that Python shows on to a function.

    Args:
        collect: Called with the text of each.
    """

    def __init__(self, collect: Callable[[str], None]) -> None:
        self._collect: Callable[[str], None] | None = collect
        self._shown_by = warnings.showwarning
        warnings.showwarning = self._show

    def close(self) -> None:
        """Collect no more."""
        self._collect = None
        if warnings.showwarning == self._show:  # something else may stand before it by now
            warnings.showwarning = self._shown_by

    def _show(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if self._collect is not None and not issubclass(category, _FOR_DEVELOPERS):
            self._collect(" ".join(str(message).split()))
        self._shown_by(message, category, filename, lineno, file, line)
