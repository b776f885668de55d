"""Runs that take turns, epoch by epoch, so that a machine whose speed drifts treats all of them alike.

Each run has its own thread; only one works at a time. All of them are in memory together. What a run does in the
background, such as writing files, may continue in the turn of another.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

Result = TypeVar("Result")
_local = threading.local()


def pass_turn() -> None:
    """Let the others work until it is the turn of this run again; does nothing outside of :func:`in_turns`."""
    worker: _Worker[object] | None = getattr(_local, "worker", None)
    if worker is not None:
        worker.pass_turn()


def in_turns(runs: Mapping[str, Callable[[], Result]]) -> dict[str, tuple[float, Result]]:
    """Run functions that call :func:`pass_turn` now and then, and return their seconds and results.

    Args:
        runs: The functions, in the order of their turns.

    Returns:
        For each name the seconds in which it worked, and what it returned.

    Raises:
        Exception: What a function has raised, once all have ended.
    """
    waiting: deque[threading.Semaphore] = deque()
    workers = {name: _Worker(run, waiting) for name, run in runs.items()}
    for worker in workers.values():
        worker.start()
    waiting.popleft().release()
    for worker in workers.values():
        worker.join()
    return {name: (worker.seconds, worker.result()) for name, worker in workers.items()}


class _Worker(threading.Thread, Generic[Result]):
    def __init__(self, run: Callable[[], Result], waiting: deque[threading.Semaphore]) -> None:
        super().__init__(daemon=True)  # an interrupt ends the process
        self.seconds = 0.0
        self._function = run
        self._waiting = waiting
        self._turn = threading.Semaphore(0)
        self._began = 0.0
        self._result: list[Result] = []
        self._error: BaseException | None = None
        waiting.append(self._turn)

    def run(self) -> None:
        _local.worker = self
        self._wait()
        try:
            self._result.append(self._function())
        except BaseException as error:
            self._error = error
        finally:
            self._end_turn()

    def result(self) -> Result:
        if self._error is not None:
            raise self._error
        return self._result[0]

    def pass_turn(self) -> None:
        self._waiting.append(self._turn)
        self._end_turn()
        self._wait()

    def _wait(self) -> None:
        self._turn.acquire()
        self._began = time.perf_counter()

    def _end_turn(self) -> None:
        self.seconds += time.perf_counter() - self._began
        if self._waiting:
            self._waiting.popleft().release()
