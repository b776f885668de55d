"""Extra forward passes of a check, in the same order on all ranks of a sharded run.

A sharded module communicates in its forward pass, so a pass that one rank runs alone waits forever. What a check runs
depends on the samples of a rank. So each rank announces its next pass, and ranks that need none, or another one, run a
pass of the same kind on samples of their own and drop the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import IntEnum
from typing import Any, TypeVar

from lightning_freeze.distributed.ranks import Ranks

T = TypeVar("T")


class Extra(IntEnum):
    """The kinds of extra passes; passes of the same kind communicate in the same way. The highest runs first."""

    NONE = 0
    #: The whole tower.
    WHOLE = 1
    #: The tower without its frozen prefix.
    SKIPPING = 2
    #: The frozen prefix alone. First, because it may run while operations are recorded, where no other pass may run.
    PREFIX = 3


class Lockstep:
    """Runs extra passes; on one rank, and where nothing is sharded, at once.

    Args:
        ranks: All ranks, ``None`` if each of them may run other layers.
    """

    def __init__(self, ranks: Ranks | None = None) -> None:
        self.ranks = ranks
        self._substitutes: Mapping[Extra, Callable[[], Any]] | None = None

    @contextmanager
    def passes(self, substitutes: Mapping[Extra, Callable[[], Any]]) -> Iterator[None]:
        """Run extra passes in this context, which all ranks must enter; at its end, wait until no rank needs another.

        Args:
            substitutes: A pass of each kind, to run while another rank needs one.
        """
        if self.ranks is None:
            yield
            return
        self._substitutes = substitutes
        try:
            yield
        finally:
            self._substitutes = None
            self._run_others(self.ranks, substitutes)

    def run(self, kind: Extra, work: Callable[[], T]) -> T:
        """Run a pass when it is its turn.

        Args:
            kind: Its kind.
            work: The pass.

        Returns:
            What ``work`` returns.
        """
        if self.ranks is not None and self._substitutes is not None:
            while (needed := Extra(self.ranks.highest(kind))) is not kind:
                self._substitutes[needed]()
        return work()

    def _run_others(self, ranks: Ranks, substitutes: Mapping[Extra, Callable[[], Any]]) -> None:
        """Run what other ranks need until none of them needs any more; an error is raised after that."""
        failure: Exception | None = None
        while (needed := Extra(ranks.highest(Extra.NONE))) is not Extra.NONE:
            try:
                substitutes[needed]()
            except Exception as error:  # the others would wait for this rank
                failure = failure or error
        if failure is not None:
            raise failure
