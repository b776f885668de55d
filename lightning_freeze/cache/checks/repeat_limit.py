"""A limit on how often something may happen that should be rare."""

from __future__ import annotations

#: Number of occurrences that is exceeded.
_LIMIT = 8
#: The part of an occurrence that each observation without one takes back.
_RECOVERY = 1 / 4


class RepeatLimit:
    """Is exceeded by something that happens again and again, not by the few times at the start of a phase."""

    def __init__(self) -> None:
        self._count = 0.0

    def record(self, happened: bool) -> None:
        """Record one observation."""
        self._count = self._count + 1 if happened else max(0.0, self._count - _RECOVERY)

    @property
    def is_exceeded(self) -> bool:
        """Whether it has happened too often."""
        return self._count > _LIMIT
