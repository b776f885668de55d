"""The disk tier: one LMDB environment for each namespace, so that removing one gives its space back at once."""

from __future__ import annotations

import os
import shutil
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from lightning_freeze.cache import folder
from lightning_freeze.cache.entry import VERSION, seal
from lightning_freeze.cache.environment import Damaged, Environment, Failed, acquire, release
from lightning_freeze.cache.sizes import show_size

_Result = TypeVar("_Result")
_NAMESPACE_BYTES = 16
_LOOK_AGAIN = 5.0
_MOST_RESERVE = 1024**3
_RESERVE_SHARE = 0.05
_AGAIN = "What is not stored is computed again."


class Unusable(Exception):
    """Nothing can be kept in this folder; the message is for the user."""


class DiskTier:
    """Entries in a folder that any number of processes read and write.

    One thread may read while another one writes. Nothing that goes wrong on the disk raises: entries that cannot be
    read are missing, entries that cannot be written are left out, and one warning says why.

    Args:
        root: The cache folder.
        budget: How many bytes all namespaces may take, those of other processes included. Beyond it the namespaces that
            have been idle longest, and for at least ten minutes, are removed; if that is not enough, nothing more is
            written.

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
        self._damaged: set[bytes] = set()
        self._broken: set[bytes] = set()
        self._environments: dict[bytes, Environment] = {}
        self._all: list[Environment] = []
        self._looked: dict[bytes, float] = {}
        self._lock = threading.Lock()
        self._said: set[str] = set()
        self._to_say: list[str] = []
        self._writes = self._prepare()

    def _prepare(self) -> bool:
        if (self.root / folder.MARKER).exists():
            version = folder.version_of(self.root)
            if version != VERSION:
                raise Unusable(
                    f"{self.root} holds a cache of version {version or '?'}, which this lightning-freeze (cache "
                    f"version {VERSION}) does not read: nothing is kept on disk. Give another cache_dir, or remove it."
                )
            if os.access(self.root, os.W_OK):
                return True
            self._say("read-only", f"{self.root} is read-only: what is in it is used, but nothing is added.")
            return False
        try:
            folder.mark(self.root)
        except OSError as error:
            raise Unusable(f"{self.root} cannot be written ({error.strerror}): nothing is kept on disk.") from error
        return True

    def declare(self, namespace: bytes, info: dict[str, str | int]) -> None:
        """Say for a human reader what a namespace holds.

        Args:
            namespace: 16 bytes.
            info: Anything that JSON can hold.
        """
        self._info[namespace] = dict(info)

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
                self._say(
                    "damaged",
                    f"{self._path(namespace)} holds damaged entries, which are computed again. "
                    f"`lightning-freeze cache verify {self.root}` counts them.",
                )
            return result

        environment = self._environment(namespace, create=False)
        if environment is None:
            return [None] * len(keys)
        try:
            return environment.read(keys, counted)
        except Failed as error:
            self._give_up(namespace, error)
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
            if not self._writes or not self._has_room(namespace, sum(len(entries[name]) for name in names)):
                self.dropped += len(names)
                continue
            rows = []
            for name in names:
                data = entries[name].numpy()
                seal(name, data)
                rows.append((name[_NAMESPACE_BYTES:], data.data, name in self._damaged))
            try:
                environment = self._environment(namespace, create=True)
                if environment is None:
                    self.dropped += len(names)
                    continue
                environment.write(rows)
                self._damaged.difference_update(names)
            except (Failed, OSError) as error:
                self._writes = False
                self.dropped += len(names)
                self._say("write", f"{self.root} cannot be written ({error}): nothing more is added to it. {_AGAIN}")

    @property
    def entries(self) -> int:
        """Entries in the namespaces used."""
        with self._lock:
            environments = list(self._environments.values())
        return sum(len(environment) for environment in environments)

    @property
    def held_bytes(self) -> int:
        """Bytes on disk of the namespaces used."""
        return sum(folder.bytes_on_disk(self._path(namespace)) for namespace in list(self._environments))

    def say(self) -> None:
        """Give the warnings that have come up since the last call; the thread that writes cannot do so itself."""
        while self._to_say:
            warnings.warn(f"FrozenPrefixCache: {self._to_say.pop(0)}", stacklevel=4)

    def close(self) -> None:
        """Close everything; what is used again is opened again."""
        with self._lock:
            for environment in self._all:
                release(environment)
            self._environments, self._all = {}, []

    def after_fork(self) -> None:
        """Forget the handles of the parent process."""
        self._lock = threading.Lock()
        self._environments, self._all = {}, []

    def _path(self, namespace: bytes) -> Path:
        return self.root / namespace.hex()

    def _environment(self, namespace: bytes, create: bool) -> Environment | None:
        """The open environment of a namespace. One that was removed meanwhile is opened, or made, anew."""
        with self._lock:
            if namespace in self._broken:
                return None
            path, now = self._path(namespace), time.monotonic()
            found = self._environments.get(namespace)
            if found is not None and (create or now - self._looked[namespace] > _LOOK_AGAIN):
                self._looked[namespace] = now
                if self._writes:
                    folder.touch(path)
                if not found.is_current:
                    # Still in `_all`: the other thread may be reading from it.
                    del self._environments[namespace]
                    found = None
            if found is not None or not (create or (path / folder.DATA).exists()):
                return found
            try:
                if create:
                    self._make(namespace)
                found = acquire(path, readonly=not self._writes)
                if found.users == 1 and found.is_quick_to_walk and (problem := found.problem()):
                    release(found)
                    raise Damaged(problem)
            except (Failed, Damaged, OSError) as error:
                if create and not (path / folder.DATA).exists():
                    raise
                self._give_up(namespace, error)
                return None
            self._environments[namespace], self._looked[namespace] = found, now
            self._all.append(found)
            return found

    def _make(self, namespace: bytes) -> None:
        path = self._path(namespace)
        path.mkdir(exist_ok=True)
        if not (path / folder.INFO).exists():
            folder.write_json(path / folder.INFO, dict(self._info.get(namespace, {})))

    def _has_room(self, namespace: bytes, size: int) -> bool:
        """Whether this much more may be written; makes room if it may not."""
        disk = shutil.disk_usage(self.root)
        # A full disk would also stop the run's own checkpoints.
        if disk.free - size < min(_MOST_RESERVE, _RESERVE_SHARE * disk.total):
            self._say("full", f"the disk of {self.root} is full: nothing more is added. {_AGAIN}")
            return False
        if self.budget is None:
            return True
        held = folder.namespaces(self.root)
        taken = sum(found.bytes for found in held) + size
        for found in held:
            if taken <= self.budget:
                return True
            if time.time() - found.used > folder.IDLE and found.name != namespace.hex():
                try:
                    folder.remove(found)
                except OSError:
                    continue
                taken -= found.bytes
        if taken > self.budget:
            self._say("budget", f"{self.root} has reached max_disk ({show_size(self.budget)}). {_AGAIN}")
        return taken <= self.budget

    def _give_up(self, namespace: bytes, error: Exception) -> None:
        self._broken.add(namespace)
        self._say(
            "broken",
            f"{self._path(namespace)} cannot be read ({error}). What it holds is computed again. `lightning-freeze "
            f"cache prune {self.root} --namespace {namespace.hex()[:8]}` removes it.",
        )

    def _say(self, kind: str, message: str) -> None:
        if kind not in self._said:
            self._said.add(kind)
            self._to_say.append(message)
