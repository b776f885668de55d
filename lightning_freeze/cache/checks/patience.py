"""How often something may happen that should not, before it is given up."""

from __future__ import annotations

#: Events until it is given up.
_MOST = 8
#: The share of an event that each look without one makes good.
_FORGIVES = 1 / 4


class Patience:
    """Wears out where something happens again and again; the few times of a phase that begins are forgiven."""

    def __init__(self) -> None:
        self._events = 0.0

    def note(self, happened: bool) -> None:
        """Look once more whether it has happened."""
        self._events = self._events + 1 if happened else max(0.0, self._events - _FORGIVES)

    @property
    def is_over(self) -> bool:
        """Whether it has happened too often."""
        return self._events > _MOST
