"""Write-behind: a thread writes entries from a queue in memory, so that no training step waits for the disk."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

_BATCH_BYTES = 32 * 1024**2
_DELAY = 0.5
_LOOK_AGAIN = 1.0
#: Maximum size of waiting entries beyond the memory budget, in bytes.
MOST_WAITING = 256 * 1024**2


@dataclass
class Waiting:
    """An entry that waits to be written to disk.

    Attributes:
        data: Its bytes.
        is_extra: Whether the RAM tier does not hold them as well.
    """

    data: Tensor
    is_extra: bool


class WriteBehind:
    """A queue and the thread that empties it.

    Args:
        write: Writes entries by name (namespace and key).
        failed: Called with an exception that ended the thread, and the number of entries that were dropped. No more
            entries are accepted then.
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

    def add(self, name: bytes, data: Tensor, is_extra: bool, wait: bool = False) -> bool:
        """Queue an entry. Returns False, and does nothing, if too much is waiting already or writing has failed.

        The queue does not make a training step wait. If hidden states are computed faster than the disk writes, some
        entries are left out and computed again in the next epoch, so that the run is never slower than one without a
        cache.

        Args:
            name: Namespace and key.
            data: The entry's bytes, which must not change any more.
            is_extra: Whether they take memory beyond the budget of the RAM tier.
            wait: Whether to wait until there is room, rather than to leave the entry out.
        """
        with self._changed:
            while wait and is_extra and self._is_full(len(data)) and self._is_writing():
                self._changed.wait(_LOOK_AGAIN)
            # While nothing waits, there is room for an entry of any size.
            if self._has_failed or (is_extra and self._is_full(len(data)) and not (wait and not self._waiting)):
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
        """Size of waiting entries beyond the budget of the RAM tier, in bytes."""
        return self._extra

    def flush(self) -> None:
        """Wait until the queue is empty. If the thread has died, the waiting entries are dropped."""
        with self._changed:
            self._flushing = True
            self._changed.notify_all()
            while self._is_writing():
                self._changed.wait(_LOOK_AGAIN)
            self._flushing = False
            if self._waiting:
                self._drop(RuntimeError("the thread that writes has died"))

    def _is_full(self, size: int) -> bool:
        return self._extra + size > MOST_WAITING

    def _is_writing(self) -> bool:
        return bool(self._waiting) and self._thread is not None and self._thread.is_alive()

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
            self._write_queue()
        # Any exception: otherwise it would go unnoticed, and `flush` would wait indefinitely.
        except BaseException as error:
            with self._changed:
                self._drop(error)

    def _drop(self, error: BaseException) -> None:
        """Drop the waiting entries. Those in RAM stay there; the others are computed again."""
        count, self._waiting, self._extra, self._has_failed = len(self._waiting), {}, 0, True
        self._failed(error, count)
        self._changed.notify_all()

    def _write_queue(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                self._changed.wait_for(self._should_commit, timeout=_DELAY)
                batch = self._next_batch()
            self._write({name: waiting.data for name, waiting in batch.items()})
            with self._changed:
                for name, waiting in batch.items():
                    del self._waiting[name]
                    self._extra -= len(waiting.data) * waiting.is_extra
                self._changed.notify_all()

    def _should_commit(self) -> bool:
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
