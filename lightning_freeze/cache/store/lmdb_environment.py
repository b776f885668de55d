"""One LMDB environment: opened once in a process for all users, with a map as large as its disk."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from lightning_freeze.cache.store.folder import DATA, LOCK
from lightning_freeze.cache.store.lmdb_header import Damaged, read_header
from lightning_freeze.cache.store.plain_files import FILE_MODE, check_file, check_folder
from lightning_freeze.errors import ConfigurationError

try:
    import lmdb
    from lmdb.verify import VerifyError, verify
except ModuleNotFoundError as error:
    raise ConfigurationError(
        "A cache on disk needs lmdb 3.0 or newer, which is not installed: expected `pip install 'lmdb>=3'`."
    ) from error

Failed = lmdb.Error

_Result = TypeVar("_Result")
_MOST_READERS = 1024
_LEAST_MAP = 1024**3
_LARGEST_MAP = 16 * 1024**4
_QUICK_ENTRIES = 50_000
_QUICK_PAGES = 400_000
_SMALL_BYTES = 64 * 1024**2


class Environment:
    """The entries of one namespace.

    LMDB allows one handle in a process, so :func:`acquire` and :func:`release` share it. Commits are ordered: data
    reaches the disk before the page that refers to it, so a power failure can undo the last commit but never leaves an
    invalid structure. ``kill -9`` at any moment loses only data that was not committed yet.

    Args:
        path: The folder.
        readonly: Whether the file must not be written to.
        lock: Whether a reader registers in the lock file, which keeps writers from reusing the pages that it reads.
            Without it, nothing at all is written; suited to a quick look, and to a folder without a lock file.
        map_size: Address space to reserve; by default the size of the disk, so that the map need not grow.

    Raises:
        lmdb.Error: If it cannot be opened.
        Damaged: If the file is shorter than its header says, for example after an interrupted copy.
        OSError: If the folder does not exist, or the folder or one of its files is a link or of another wrong kind.

    Attributes:
        file: Device and inode of the file that is open.
    """

    def __init__(self, path: Path, readonly: bool, lock: bool = True, map_size: int | None = None) -> None:
        self.path = path
        self.users = 0
        self.readonly = readonly
        self._check_files()
        self._locks = not readonly or (lock and (path / LOCK).exists())
        self._reading = threading.Lock()
        self._writing = threading.Lock()
        self._env = self._open(map_size or min(_LARGEST_MAP, max(_LEAST_MAP, shutil.disk_usage(path).total)))
        try:
            self.file = self._check()
        except BaseException:
            self._env.close()
            raise

    @property
    def is_current(self) -> bool:
        """Whether the folder still holds the file that is open here, and not a new one or none."""
        try:
            file = (self.path / DATA).stat(follow_symlinks=False)
        except OSError:
            return False
        return (file.st_dev, file.st_ino) == self.file

    def read(self, keys: Sequence[bytes], use: Callable[[bytes, Any], _Result]) -> list[_Result | None]:
        """Look entries up.

        Args:
            keys: Their keys.
            use: Makes the result from a key and the entry's bytes, which are valid only during the call.

        Returns:
            The results, ``None`` for a key without entry.
        """
        with self._reading, self._begin(write=False) as transaction:
            values = ((key, transaction.get(key)) for key in keys)
            return [None if value is None else use(key, value) for key, value in values]

    def each(self) -> Iterable[tuple[bytes, Any]]:
        """Iterate over all entries in the order of the keys; the bytes are valid until the next one."""
        with self._begin(write=False) as transaction:
            for key, data in transaction.cursor():
                yield bytes(key), data

    @property
    def is_quick_to_check(self) -> bool:
        """Whether :meth:`problem` takes well under a second, or a few for a small file that claims many entries."""
        pages = self._env.info()["last_pgno"]
        is_small = pages * self._env.stat()["psize"] <= _SMALL_BYTES
        return is_small or (len(self) <= _QUICK_ENTRIES and pages <= _QUICK_PAGES)

    def problem(self) -> str:
        """Check the structure of the file without trusting any of it; LMDB itself trusts it.

        Returns:
            What is wrong with it; an empty string if nothing is.
        """
        # The file must not change during the check, so other writers wait. A read-only user cannot make them wait, and
        # ignores the result if the file has changed.
        before = self._env.info()["last_txnid"]
        with contextlib.nullcontext() if self.readonly else self._begin(write=True):
            try:
                problems = verify(str(self.path), subdir=True)  # type: ignore[no-untyped-call]
            except VerifyError as error:
                problems = [str(error)]
        if self.readonly and self._env.info()["last_txnid"] != before:
            return ""
        return str(problems[0]) if problems else ""

    def write(self, entries: Iterable[tuple[bytes, Any, bool]]) -> None:
        """Add entries, all or none.

        Args:
            entries: Key, bytes, and whether they take the place of an entry that is already there.

        Raises:
            lmdb.Error: If they cannot be written, as on a full disk.
        """
        entries = list(entries)
        while True:
            size = self._env.info()["map_size"]
            try:
                with self._writing, self._begin(write=True) as transaction:
                    for key, data, replaces in entries:
                        transaction.put(key, data, overwrite=replaces)
                return
            except lmdb.MapFullError:
                if size >= shutil.disk_usage(self.path).total:
                    raise
                with self._reading:
                    self._env.set_mapsize(2 * size)

    def __len__(self) -> int:
        return int(self._env.stat()["entries"])

    def pause(self) -> None:
        """Wait for running transactions, and start no new ones before :meth:`resume`."""
        self._writing.acquire()
        self._reading.acquire()

    def resume(self) -> None:
        """The end of :meth:`pause`."""
        self._reading.release()
        self._writing.release()

    def close(self) -> None:
        """Unmap the file when the running transactions have ended."""
        with self._writing, self._reading:
            self._env.close()

    def __enter__(self) -> Environment:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _check_files(self) -> None:
        """Check the files first: LMDB follows links, writes to the lock file even for reads, and trusts the header."""
        check_folder(self.path)
        check_file(self.path / LOCK)
        if check_file(self.path / DATA) is not None:
            read_header(self.path / DATA)

    def _check(self) -> tuple[int, int]:
        """Check that the file is complete; returns its device and inode."""
        file = check_file(self.path / DATA)
        if file is None:
            raise FileNotFoundError(f"{DATA} has been removed")
        if not self.readonly:
            self._env.reader_check()
        if file.st_size < (self._env.info()["last_pgno"] + 1) * self._env.stat()["psize"]:
            raise Damaged("the file is shorter than its header says")
        return file.st_dev, file.st_ino

    def _begin(self, write: bool) -> lmdb.Transaction:
        try:
            return self._env.begin(write=write, buffers=True)
        except lmdb.MapResizedError:
            # Another process has written beyond the map of this one.
            self._env.set_mapsize(0)
            return self._env.begin(write=write, buffers=True)

    def _open(self, size: int) -> lmdb.Environment:
        # Read-ahead stays on: an entry spans many pages, and reading them one by one would be several times slower.
        options: dict[str, Any] = {"max_readers": _MOST_READERS, "metasync": False, "mode": FILE_MODE}
        if self.readonly:
            options |= {"readonly": True, "create": False, "lock": self._locks}
        while True:
            try:
                return lmdb.open(str(self.path), map_size=size, **options)
            except lmdb.MemoryError:
                # A limit on address space (ulimit -v).
                if size <= _LEAST_MAP:
                    raise
                size = max(_LEAST_MAP, size // 4)
            except lmdb.ReadonlyError:
                if not self.readonly or not options["lock"]:
                    raise
                # Even a reader registers in the lock file, which is read-only here too.
                options["lock"] = False


_open: dict[str, Environment] = {}
_living: set[Environment] = set()
_registry = threading.Lock()


def acquire(path: Path, readonly: bool, lock: bool = True) -> Environment:
    """Return the handle of this process on a namespace; pass it to :func:`release` after use.

    Args:
        path: The folder.
        readonly: Whether the file must not be written to.
        lock: As for :class:`Environment`, if it is not open already.

    Raises:
        lmdb.Error, Damaged, OSError: If it cannot be opened.
    """
    check_folder(path)
    name = os.path.realpath(path)
    with _registry:
        found = _open.get(name)
        if found is None or not found.is_current:
            # Users of an environment that was removed keep it until they check again.
            found = _open[name] = Environment(path, readonly, lock)
            _living.add(found)
        found.users += 1
        return found


def retain(environment: Environment) -> None:
    """Add a user to an open handle; it has to call :func:`release` too."""
    with _registry:
        environment.users += 1


def release(environment: Environment) -> None:
    """Remove a user of a handle; the last one closes it."""
    with _registry:
        environment.users -= 1
        if environment.users <= 0:
            for name in [name for name, found in _open.items() if found is environment]:
                del _open[name]
            _living.discard(environment)
            environment.close()


# A process must not fork during a transaction of LMDB, and the child must not use its handles. So a fork waits for the
# running transactions, and the child closes the handles it has inherited. Data loader workers and ranks may be forked.
def _before_fork() -> None:
    _registry.acquire()
    for environment in _living:
        environment.pause()


def _after_fork_in_parent() -> None:
    for environment in _living:
        environment.resume()
    _registry.release()


def _after_fork_in_child() -> None:
    for environment in list(_living):
        environment.resume()
        environment.close()
    _open.clear()
    _living.clear()
    _registry.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
