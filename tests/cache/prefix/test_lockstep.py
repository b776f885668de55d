"""Extra passes of checks: all ranks run passes of the same kinds in the same order, whatever each of them needs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from lightning_freeze.cache.decision import (
    IDENTIFY,
    Decision,
    Outcome,
    PrefixFacts,
    announcement,
    decide_prefix,
    in_lockstep,
    without_own_passes,
)
from lightning_freeze.cache.prefix.lockstep import Extra, Lockstep


class Threads:
    """Ranks that are threads of this process."""

    def __init__(self, count: int) -> None:
        self._barrier = threading.Barrier(count, timeout=10)
        self._values: list[int] = []

    def highest(self, value: int) -> int:
        self._values.append(value)
        self._barrier.wait()
        found = max(self._values)
        if self._barrier.wait() == 0:
            self._values.clear()
        self._barrier.wait()
        return found


def run(needs: Sequence[Sequence[Extra]], fails: int = -1, breaks: int = -1) -> list[list[Extra]]:
    """Run what each rank needs; returns the kinds of all passes that each of them has run.

    The own passes of the rank ``fails`` raise an error, and the passes that the rank ``breaks`` runs for others.
    """
    ranks, ran, raised = Threads(len(needs)), [[] for _ in needs], []

    def note(rank: int, kind: Extra) -> Callable[[], Any]:
        return lambda: ran[rank].append(kind)

    def broken(rank: int, kind: Extra) -> Callable[[], Any]:
        def substitute() -> None:
            ran[rank].append(kind)
            if rank == breaks:
                raise ArithmeticError

        return substitute

    def work(rank: int) -> None:
        lockstep = Lockstep(ranks)  # type: ignore[arg-type]
        try:
            with lockstep.passes({kind: broken(rank, kind) for kind in Extra}):
                for kind in needs[rank]:
                    lockstep.run(kind, note(rank, kind))
                    if rank == fails:
                        raise ArithmeticError
        except ArithmeticError:
            assert rank in (fails, breaks)
            raised.append(rank)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(len(needs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert raised == [rank for rank in (fails, breaks) if rank >= 0]
    return ran


PREFIX, SKIPPING, WHOLE = Extra.PREFIX, Extra.SKIPPING, Extra.WHOLE


@pytest.mark.parametrize(
    "needs",
    [
        [[], [PREFIX, PREFIX, SKIPPING]],
        [[PREFIX, SKIPPING], [PREFIX, PREFIX, SKIPPING, SKIPPING]],
        [[PREFIX, SKIPPING, WHOLE], [SKIPPING], [WHOLE, PREFIX]],
        [[], []],
    ],
)
def test_all_ranks_run_the_same(needs: Sequence[Sequence[Extra]]) -> None:
    first, *others = run(needs)
    assert all(other == first for other in others)
    assert all(first.count(kind) >= own.count(kind) for own in needs for kind in (PREFIX, SKIPPING, WHOLE))


def test_a_rank_whose_check_fails_still_takes_part() -> None:
    first, second = run([[PREFIX, SKIPPING], [PREFIX, PREFIX, SKIPPING]], fails=0)
    assert first == second == [PREFIX, PREFIX, SKIPPING]


@pytest.mark.parametrize("needs", [[[], [PREFIX, SKIPPING]], [[SKIPPING], [PREFIX, SKIPPING]]])
def test_a_rank_on_which_a_pass_for_another_one_fails_still_takes_part(needs: Sequence[Sequence[Extra]]) -> None:
    first, second = run(needs, breaks=0)
    assert first == second == [PREFIX, SKIPPING]


def test_one_rank_alone_runs_at_once() -> None:
    lockstep = Lockstep()
    with lockstep.passes({}):
        assert lockstep.run(PREFIX, lambda: 3) == 3


def test_the_strongest_need_of_any_rank_counts() -> None:
    skip = decide_prefix(without_own_passes(PrefixFacts(4, found=4)))
    some = decide_prefix(without_own_passes(PrefixFacts(4, found=3)))
    none = decide_prefix(without_own_passes(PrefixFacts(4, has_lower=True)))
    off = Decision(Outcome.SWITCH_OFF, "why")
    assert skip.outcome is Outcome.SKIP
    assert in_lockstep(skip, announcement(skip)) == skip
    for other in (some, none):
        assert other.outcome in (Outcome.RUN_AND_COMPARE, Outcome.RUN_AND_STORE)
        together = in_lockstep(skip, max(announcement(skip), announcement(other)))
        assert together.outcome is other.outcome
        assert together.reason == "another rank needs it (all 4 samples were found)"
    for decision in (skip, some, none):
        assert in_lockstep(decision, max(announcement(decision), announcement(off))).outcome is Outcome.SWITCH_OFF
        assert announcement(decision) < announcement(off) < IDENTIFY
