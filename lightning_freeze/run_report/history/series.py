"""A series of records that stays short however long the run is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class ThinnedSeries(Generic[T]):
    """Keeps records that are spread evenly over the run.

    When it is full, every second record is dropped, and from then on only every second one is added.

    Args:
        limit: The most records that are kept.
        is_pinned: Whether a record is always added and never dropped.
    """

    def __init__(self, limit: int, is_pinned: Callable[[T], bool] = lambda record: False) -> None:
        self.limit = limit
        self.records: list[T] = []
        self.stride = 1
        self.offered = 0
        self._is_pinned = is_pinned

    def add(self, record: T) -> None:
        """Offer a record."""
        is_next = self.offered % self.stride == 0
        self.offered += 1
        if is_next or self._is_pinned(record):
            self.records.append(record)
        if len(self.records) > self.limit:
            self._thin()

    def _thin(self) -> None:
        self.stride *= 2
        kept, is_even = [], True
        for record in self.records:
            if self._is_pinned(record):
                kept.append(record)
                continue
            if is_even:
                kept.append(record)
            is_even = not is_even
        # With too many pinned records, the latest ones are kept.
        self.records = kept if len(kept) <= self.limit else kept[-self.limit :]

    def __iter__(self) -> Iterator[T]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self.records)
