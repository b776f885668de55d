"""Write-behind: entries wait in memory for a thread that writes them, so that no training step waits for the disk."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

_BATCH_BYTES = 32 * 1024**2
_DELAY = 0.5
_LOOK_AGAIN = 1.0
#: What may wait beyond the memory budget, in bytes.
MOST_WAITING = 256 * 1024**2


@dataclass
class Waiting:
    """An entry on its way to the disk.

    Attributes:
        data: Its bytes.
        is_extra: Whether they are held for the disk alone, and not by the RAM tier as well.
    """

    data: Tensor
    is_extra: bool


class WriteBehind:
    """A queue and the thread that empties it.

    Args:
        write: Writes entries by name (namespace and key).
        failed: Told of an exception that ended the thread, and how many entries were dropped with it. From then on
            nothing is taken.
    """

    def __init__(
        self, write: Callable[[dict[bytes, Tensor]], None], failed: Callable[[BaseException, int], None]
    ) -> None:
        self._write = write
        self._failed = failed
        self._waiting: dict[bytes, Waiting] = {}
        self._changed = threading.Condition()
        self._extra = 0
        self._flushing = self._closed = self._has_failed = False
        self._thread: threading.Thread | None = None

    def add(self, name: bytes, data: Tensor, is_extra: bool) -> bool:
        """Queue an entry. Returns False, and does nothing, if too much is waiting already or writing has failed.

        The queue never makes its caller wait: a fill that computes faster than the disk writes leaves some entries out,
        which are computed once more in the next epoch, rather than become slower than a run without a cache.

        Args:
            name: Namespace and key.
            data: The entry's bytes, which nobody may change any more.
            is_extra: Whether they take memory beyond the RAM tier's budget.
        """
        with self._changed:
            if self._has_failed or (is_extra and self._extra + len(data) > MOST_WAITING):
                return False
            if name not in self._waiting:
                self._waiting[name] = Waiting(data, is_extra)
                self._extra += len(data) * is_extra
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="lightning-freeze cache writer", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        return True

    def find(self, name: bytes) -> Tensor | None:
        """Return the bytes of an entry that is still waiting."""
        waiting = self._waiting.get(name)
        return None if waiting is None else waiting.data

    @property
    def extra_bytes(self) -> int:
        """What waits beyond the RAM tier's budget."""
        return self._extra

    def flush(self) -> None:
        """Wait until nothing is waiting any more. If the thread has died, what waits is dropped."""
        with self._changed:
            self._flushing = True
            self._changed.notify_all()
            while self._waiting and self._thread is not None and self._thread.is_alive():
                self._changed.wait(_LOOK_AGAIN)
            self._flushing = False
            if self._waiting:
                self._drop(RuntimeError("the thread that writes has died"))

    def close(self) -> None:
        """Flush and end the thread."""
        self.flush()
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        self._thread, self._closed = None, False

    def _run(self) -> None:
        try:
            self._write_what_comes()
        # Whatever it is, nobody else would see it, and whoever flushes would wait for ever.
        except BaseException as error:
            with self._changed:
                self._drop(error)

    def _drop(self, error: BaseException) -> None:
        """Give up what waits. What of it is in RAM, too, stays there; the rest is computed again."""
        count, self._waiting, self._extra, self._has_failed = len(self._waiting), {}, 0, True
        self._failed(error, count)
        self._changed.notify_all()

    def _write_what_comes(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                self._changed.wait_for(self._is_worth_a_commit, timeout=_DELAY)
                batch = self._next_batch()
            self._write({name: waiting.data for name, waiting in batch.items()})
            with self._changed:
                for name, waiting in batch.items():
                    del self._waiting[name]
                    self._extra -= len(waiting.data) * waiting.is_extra
                self._changed.notify_all()

    def _is_worth_a_commit(self) -> bool:
        return self._flushing or self._closed or sum(len(w.data) for w in self._waiting.values()) >= _BATCH_BYTES

    def _next_batch(self) -> dict[bytes, Waiting]:
        batch: dict[bytes, Waiting] = {}
        size = 0
        for name, waiting in self._waiting.items():
            batch[name] = waiting
            size += len(waiting.data)
            if size >= _BATCH_BYTES:
                break
        return batch
