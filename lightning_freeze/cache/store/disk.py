"""The disk tier: one LMDB environment for each namespace, so that removing a namespace frees its space at once."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from lightning_freeze.cache.store import folder
from lightning_freeze.cache.store.entry import VERSION, seal
from lightning_freeze.cache.store.lmdb_environment import Environment, Failed, acquire, release, retain
from lightning_freeze.cache.store.lmdb_header import Damaged
from lightning_freeze.cache.store.plain_files import RefusedError, is_file, make_folder, write_json

_Result = TypeVar("_Result")
_NAMESPACE_BYTES = 16
_LOOK_AGAIN = 5.0
# Each environment takes three file descriptors, and a prefix that changes in each step creates one in each step.
_MOST_OPEN = 8
_RECOMPUTED = "What is not stored is computed again."


class Unusable(Exception):
    """The folder cannot be used; the message is for the user."""


class DiskTier:
    """Entries in a folder that any number of processes read and write.

    One thread may read while another one writes. Disk errors do not raise: entries that cannot be read are missing,
    entries that cannot be written are left out, and one warning gives the reason.

    Args:
        root: The cache folder.
        budget: Maximum size of all namespaces in bytes, those of other processes included. Beyond it, the namespaces
            that were not used for the longest time, and for at least ten minutes, are removed. If that is not enough,
            nothing more is written.

    Raises:
        Unusable: If the folder holds a cache of another version, or can be neither written nor read.
    """

    def __init__(self, root: Path, budget: int | None) -> None:
        self.root = root
        self.budget = budget
        self.read_bytes = 0
        self.recovered = 0
        self.dropped = 0
        self._info: dict[bytes, dict[str, str | int]] = {}
        self._noted: dict[bytes, int] = {}
        self._damaged: set[bytes] = set()
        self._unreadable: set[bytes] = set()
        # In the order of use, the latest last. `_using` holds a reference of its own, so that an environment may be
        # closed here at any time.
        self._environments: dict[bytes, Environment] = {}
        self._checked_at: dict[bytes, float] = {}
        self._verified: dict[bytes, tuple[int, int]] = {}
        self._counts: dict[bytes, int] = {}
        self._lock = threading.Lock()
        self._warned_kinds: set[str] = set()
        self._pending_warnings: list[str] = []
        self._is_writable = self._prepare()
        self._device = folder.device(root)

    def _prepare(self) -> bool:
        try:
            is_marked = folder.is_marked(self.root)
        except OSError as error:
            raise Unusable(f"{self.root} cannot be read ({error.strerror}): nothing is kept on disk.") from error
        if is_marked:
            version = folder.version_of(self.root)
            if version != VERSION:
                raise Unusable(
                    f"{self.root} holds a cache of version {version or '?'}, which this lightning-freeze (cache "
                    f"version {VERSION}) does not read: nothing is kept on disk. Give another cache_dir, or remove it."
                )
            if os.access(self.root, os.W_OK):
                return True
            self._warn_once("read-only", f"{self.root} is read-only: what is in it is used, but nothing is added.")
            return False
        try:
            folder.mark(self.root)
        except OSError as error:
            raise Unusable(f"{self.root} cannot be written ({error.strerror}): nothing is kept on disk.") from error
        return True

    def declare(self, namespace: bytes, info: dict[str, str | int]) -> None:
        """Describe a namespace for a human reader.

        Args:
            namespace: 16 bytes.
            info: Anything that JSON can hold.
        """
        self._info[namespace] = dict(info)

    def note(self, namespace: bytes, extent: int) -> None:
        """Record for later runs that samples do not depend on the rest of a batch with this number of elements."""
        self._noted[namespace] = extent
        if self._is_writable:
            # A namespace that does not exist yet records it when it is created.
            folder.note(self._path(namespace), extent)

    def noted(self, namespace: bytes) -> int:
        """The size of the largest batch that :meth:`note` recorded, in any process; 0 if there is none."""
        return folder.noted(self._path(namespace))

    def read(
        self, namespace: bytes, keys: Sequence[bytes], use: Callable[[bytes, Any], _Result | None]
    ) -> list[_Result | None]:
        """Look entries up.

        Args:
            namespace: 16 bytes.
            keys: 16 bytes each.
            use: Makes the result from a key and the entry's bytes, which are valid only during the call; returns
                ``None`` if they are not sound.
        """

        def counted(key: bytes, data: Any) -> _Result | None:
            result = use(key, data)
            self.read_bytes += len(data)
            if result is None:
                self.recovered += 1
                self._damaged.add(namespace + key)
                self._warn_once(
                    "damaged",
                    f"{self._path(namespace)} holds damaged entries, which are computed again. "
                    f"`lightning-freeze cache verify {self.root}` counts them.",
                )
            return result

        with self._using(namespace, create=False) as environment:
            try:
                if environment is not None:
                    return environment.read(keys, counted)
            except (Failed, OSError) as error:
                self._skip_namespace(namespace, error)
            return [None] * len(keys)

    def write(self, entries: dict[bytes, Tensor]) -> None:
        """Store entries.

        Args:
            entries: Bytes by name (namespace and key); their checksums are filled in here.
        """
        by_namespace: dict[bytes, list[bytes]] = {}
        for name in entries:
            by_namespace.setdefault(name[:_NAMESPACE_BYTES], []).append(name)
        for namespace, names in by_namespace.items():
            try:
                is_written = self._is_writable and self._write(namespace, {name: entries[name] for name in names})
            except (Failed, Damaged, OSError) as error:
                self.fail(error, len(names))
            else:
                self.dropped += 0 if is_written else len(names)

    def _write(self, namespace: bytes, entries: dict[bytes, Tensor]) -> bool:
        size = sum(map(len, entries.values()))
        if (problem := folder.make_room(self._path(namespace), size, self.budget)) is not None:
            self._warn_once("room", f"{problem} {_RECOMPUTED}")
            return False
        rows = []
        for name, entry in entries.items():
            data = entry.numpy()
            seal(name, data)
            rows.append((name[_NAMESPACE_BYTES:], data.data, name in self._damaged))
        with self._using(namespace, create=True) as environment:
            if environment is None:
                return False
            environment.write(rows)
        self._damaged.difference_update(entries)
        return True

    def fail(self, error: BaseException, count: int) -> None:
        """Stop writing.

        Args:
            error: The reason.
            count: Number of entries that could not be written.
        """
        self._is_writable = False
        self.dropped += count
        reason = str(error) if isinstance(error, Failed | Damaged | OSError) else repr(error)
        self._warn_once(
            "write", f"{self.root} cannot be written ({reason}): nothing more is added to it. {_RECOMPUTED}"
        )

    @property
    def entries(self) -> int:
        """Entries in the namespaces used."""
        with self._lock:
            for namespace in self._environments:
                self._count(namespace)
            counts = list(self._counts.items())
        return sum(count for namespace, count in counts if os.path.exists(self._path(namespace) / folder.DATA))

    @property
    def held_bytes(self) -> int:
        """Bytes on disk of the namespaces used."""
        with self._lock:
            used = list(self._counts)
        return sum(folder.bytes_on_disk(self._path(namespace)) for namespace in used)

    def emit_warnings(self) -> None:
        """Emit the warnings that were collected since the last call; the writer thread cannot emit them itself."""
        while self._pending_warnings:
            warnings.warn(f"FrozenPrefixCache: {self._pending_warnings.pop(0)}", stacklevel=4)

    def close(self) -> None:
        """Close all environments; they are opened again when they are used."""
        with self._lock:
            for namespace in list(self._environments):
                self._release_environment(namespace)
            self._counts = {}

    def after_fork(self) -> None:
        """Forget the handles of the parent process."""
        self._lock = threading.Lock()
        self._environments, self._counts = {}, {}

    def _path(self, namespace: bytes) -> Path:
        return self.root / namespace.hex()

    @contextlib.contextmanager
    def _using(self, namespace: bytes, create: bool) -> Iterator[Environment | None]:
        """The environment of a namespace, which stays open at least until the context ends."""
        with self._lock:
            environment = self._environment(namespace, create)
            if environment is not None:
                retain(environment)
        try:
            yield environment
        finally:
            if environment is not None:
                release(environment)

    def _environment(self, namespace: bytes, create: bool) -> Environment | None:
        """The environment of a namespace, opened if it is not open; one that was removed is opened or created again."""
        if namespace in self._unreadable:
            return None
        path, now = self._path(namespace), time.monotonic()
        found = self._environments.get(namespace)
        if found is not None and (create or now - self._checked_at[namespace] > _LOOK_AGAIN):
            self._checked_at[namespace] = now
            if self._is_writable:
                folder.touch(path)
            if not found.is_current:
                self._release_environment(namespace)
                found = None
        if found is not None:
            self._environments[namespace] = self._environments.pop(namespace)
            return found
        if not create and not os.path.lexists(path / folder.DATA):
            return None
        try:
            if create:
                self._create_namespace(namespace)
            found = self._open(namespace)
        except (Failed, Damaged, OSError) as error:
            if create and not os.path.lexists(path / folder.DATA) and not isinstance(error, RefusedError):
                raise
            self._skip_namespace(namespace, error)
            return None
        self._environments[namespace], self._checked_at[namespace] = found, now
        self._count(namespace)
        while len(self._environments) > _MOST_OPEN:
            self._release_environment(next(iter(self._environments)))
        return found

    def _open(self, namespace: bytes) -> Environment:
        environment = acquire(self._path(namespace), readonly=not self._is_writable)
        try:
            # Once for each file: it is opened again whenever other namespaces have been in use for a while.
            if environment.users == 1 and self._verified.get(namespace) != environment.file:
                if environment.is_quick_to_check and (problem := environment.problem()):
                    raise Damaged(problem)
                self._verified[namespace] = environment.file
        except BaseException:
            release(environment)
            raise
        return environment

    def _release_environment(self, namespace: bytes) -> None:
        """Forget an environment; it is closed when its last user releases it."""
        self._count(namespace)
        del self._checked_at[namespace]
        release(self._environments.pop(namespace))

    def _count(self, namespace: bytes) -> None:
        with contextlib.suppress(Failed):
            self._counts[namespace] = len(self._environments[namespace])

    def _create_namespace(self, namespace: bytes) -> None:
        # Unmounting a disk may leave an empty folder; entries written to it would fill another disk.
        if folder.device(self.root) != self._device:
            raise FileNotFoundError("it has been removed or unmounted")
        folder.mark(self.root)
        path = self._path(namespace)
        make_folder(path)
        if not is_file(path / folder.INFO):
            write_json(path / folder.INFO, dict(self._info.get(namespace, {})))
        if namespace in self._noted:
            folder.note(path, self._noted[namespace])

    def _skip_namespace(self, namespace: bytes, error: Exception) -> None:
        self._unreadable.add(namespace)
        message = f"{self._path(namespace)} cannot be read ({error}). What it holds is computed again."
        if not isinstance(error, OSError):
            message += f" `lightning-freeze cache prune {self.root} --namespace {namespace.hex()[:8]}` removes it."
        self._warn_once("broken", message)

    def _warn_once(self, kind: str, message: str) -> None:
        if kind not in self._warned_kinds:
            self._warned_kinds.add(kind)
            self._pending_warnings.append(message)
