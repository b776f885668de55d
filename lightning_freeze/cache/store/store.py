"""The store of the frozen prefix cache: a RAM tier over an optional disk tier."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lightning_freeze.cache.store.entry import EntryReader, entry_bytes, is_sound, write_entry
from lightning_freeze.cache.store.index import KEY_BYTES
from lightning_freeze.cache.store.memory import MemoryTier, Place
from lightning_freeze.cache.store.network_folder import replacement
from lightning_freeze.cache.store.sizes import default_memory, parse_size
from lightning_freeze.cache.store.writer import WriteBehind
from lightning_freeze.errors import ConfigurationError

if TYPE_CHECKING:
    from lightning_freeze.cache.store.disk import DiskTier


@dataclass(frozen=True)
class StoreStats:
    """What a store has done since it was opened, and what it holds.

    Attributes:
        hits: Look-ups that found an entry, in any tier.
        misses: Look-ups that did not.
        entries: Number of entries: on disk, in the namespaces used, if there is a disk tier; else in RAM.
        stored_bytes: Size of these entries, for messages: on disk if there is a disk tier, else in RAM; the size in RAM
            also if that is larger, for example because nothing can be written.
        memory_bytes: Bytes of RAM in use, including those that are reserved for more entries.
        disk_bytes: Bytes on disk of the namespaces used.
        read_bytes: Bytes read from disk.
        evicted: Entries dropped from RAM because they were stale.
        recovered: Entries on disk that were damaged, and counted as misses.
        dropped: Entries without room: they will be computed again.
    """

    hits: int = 0
    misses: int = 0
    entries: int = 0
    stored_bytes: int = 0
    memory_bytes: int = 0
    disk_bytes: int = 0
    read_bytes: int = 0
    evicted: int = 0
    recovered: int = 0
    dropped: int = 0


def open_store(
    cache_dir: Path | str | None = None,
    max_memory: str | int | None = None,
    max_disk: str | int | None = None,
) -> Store:
    """Open a store.

    Args:
        cache_dir: Folder for the disk tier, shared by any number of processes; created if it does not exist. ``None``
            keeps everything in RAM. If it is on a network file system, a folder on a local disk takes its place.
        max_memory: Budget of the RAM tier (``"4GiB"``, ``"500MB"``, a number of bytes). By default a quarter of the
            memory that is free now, divided by ``LOCAL_WORLD_SIZE`` where a launcher sets it.
        max_disk: Budget of ``cache_dir``. By default the disk's own limit.

    Raises:
        ConfigurationError: If a size cannot be read, ``cache_dir`` is a file, or lmdb is not installed.
    """
    memory, budget = parse_size(max_memory, "max_memory"), parse_size(max_disk, "max_disk")
    tier = MemoryTier(default_memory() if memory is None else memory)
    if cache_dir is None:
        if budget is not None:
            raise ConfigurationError(f"max_disk is {max_disk!r} without a cache_dir: expected both, or max_memory.")
        return Store(tier)
    root = _local(_folder_path(cache_dir))
    if root is None:
        return Store(tier)
    # A store in RAM needs no lmdb.
    from lightning_freeze.cache.store.disk import DiskTier, Unusable

    try:
        return Store(tier, DiskTier(root, budget))
    except Unusable as error:
        warnings.warn(f"FrozenPrefixCache: {error}", stacklevel=2)
        return Store(tier)


class Store:
    """Tensors by namespace and key, in RAM and on disk. Use :func:`open_store`.

    Threads may share it. After a fork, both processes may use it.

    Args:
        memory: The RAM tier.
        disk: The disk tier.
    """

    def __init__(self, memory: MemoryTier, disk: DiskTier | None = None) -> None:
        self._memory = memory
        self._disk = disk
        self._hits = self._misses = self._dropped = 0
        self._noted: dict[bytes, int] = {}
        self._waits_for_disk = False
        self._begin()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._lock = threading.RLock()
        self._writer = None if self._disk is None else WriteBehind(self._disk.write, self._disk.fail)

    def get(self, namespace: bytes, keys: Sequence[bytes]) -> list[Tensor | None]:
        """Look entries up.

        Args:
            namespace: 16 bytes.
            keys: 16 bytes each.

        Returns:
            CPU tensors exactly as they were put, ``None`` where there is no entry. They may share memory with the
            store, and must not be written to.
        """
        _check_namespace(namespace)
        self._check_process()
        with self._lock:
            found = self._memory.get(namespace, keys)
            if self._disk is not None and self._writer is not None:
                missing = [i for i, row in enumerate(found) if row is None]
                for i in missing:
                    waiting = self._writer.find(namespace + keys[i])
                    found[i] = None if waiting is None else EntryReader(waiting).read()
                missing = [i for i in missing if found[i] is None]
                if missing:
                    rows = self._read(self._disk, namespace, [keys[i] for i in missing])
                    for i, row in zip(missing, rows, strict=True):
                        found[i] = row
                self._disk.emit_warnings()
            hits = sum(row is not None for row in found)
            self._hits += hits
            self._misses += len(found) - hits
            return found

    def _read(self, disk: DiskTier, namespace: bytes, keys: Sequence[bytes]) -> list[Tensor | None]:
        """Read from disk, and keep entries in RAM as far as there is room."""
        kept: dict[bytes, Place] = {}

        def copy(key: bytes, data: Any) -> Tensor | None:
            place = self._memory.reserve(namespace, len(data))
            entry = torch.empty(len(data), dtype=torch.uint8) if place is None else place.data
            np.copyto(entry.numpy(), np.frombuffer(data, dtype=np.uint8))
            # The copy is checked, not the data on disk, which may still change.
            if not is_sound(namespace + key, entry.numpy()):
                return None
            if place is not None:
                kept[key] = place
            return EntryReader(entry).read()

        rows = disk.read(namespace, keys, copy)
        self._memory.commit(namespace, list(kept), list(kept.values()))
        return rows

    @torch.no_grad()
    def put(self, namespace: bytes, keys: Sequence[bytes], tensors: Sequence[Tensor]) -> None:
        """Store copies of tensors. Does not wait for the disk, except in :meth:`waiting_for_disk`.

        Args:
            namespace: 16 bytes.
            keys: 16 bytes each.
            tensors: One for each key; any shape of up to six dimensions, on any device.

        Raises:
            ValueError: If there are not as many keys as tensors, or a key or a dtype cannot be stored.
        """
        _check_namespace(namespace)
        self._check_process()
        kept: dict[bytes, Place] = {}
        with self._lock:
            present = self._memory.holds(namespace, keys)
            for key, tensor, is_present in zip(keys, tensors, present, strict=True):
                size = entry_bytes(tensor)
                if is_present or key in kept:
                    continue
                place = self._memory.reserve(namespace, size)
                if place is None and self._writer is None:
                    self._dropped += 1
                    continue
                entry = torch.empty(size, dtype=torch.uint8) if place is None else place.data
                write_entry(tensor, entry)
                if place is not None:
                    kept[key] = place
                if self._writer is not None and not self._writer.add(
                    namespace + key, entry, place is None, self._waits_for_disk
                ):
                    self._dropped += 1
            self._memory.commit(namespace, list(kept), list(kept.values()))
            if self._disk is not None:
                self._disk.emit_warnings()

    @contextmanager
    def waiting_for_disk(self) -> Iterator[None]:
        """Let :meth:`put` wait within a context, rather than leave out entries that the disk is too slow for."""
        self._waits_for_disk = True
        try:
            yield
        finally:
            self._waits_for_disk = False

    def declare(self, namespace: bytes, info: dict[str, str | int]) -> None:
        """Describe a namespace for a human reader.

        Args:
            namespace: 16 bytes.
            info: The fields that ``lightning-freeze cache info`` shows: ``model``, ``blocks``, ``of`` and others.
        """
        _check_namespace(namespace)
        if self._disk is not None:
            self._disk.declare(namespace, info)

    def note(self, namespace: bytes, extent: int) -> None:
        """Record, for later runs too, that samples were found not to depend on the rest of their batch.

        Args:
            namespace: 16 bytes.
            extent: Size of the batch, in elements of its hidden states.
        """
        _check_namespace(namespace)
        if extent > self.noted(namespace):
            self._noted[namespace] = extent
            if self._disk is not None:
                self._disk.note(namespace, extent)

    def noted(self, namespace: bytes) -> int:
        """The size of the largest batch that :meth:`note` recorded, here or on disk; 0 if there is none."""
        on_disk = self._disk.noted(namespace) if self._disk is not None else 0
        return max(self._noted.get(namespace, 0), on_disk)

    @property
    def folder(self) -> Path | None:
        """The folder of the disk tier, ``None`` if there is none."""
        return None if self._disk is None else self._disk.root

    @property
    def stats(self) -> StoreStats:
        """What the store has done and what it holds."""
        disk = self._disk
        waiting = self._writer.extra_bytes if self._writer is not None else 0
        on_disk = 0 if disk is None else disk.held_bytes
        return StoreStats(
            hits=self._hits,
            misses=self._misses,
            entries=len(self._memory) if disk is None else max(len(self._memory), disk.entries),
            stored_bytes=max(self._memory.stored_bytes, on_disk),
            memory_bytes=self._memory.bytes + self._memory.index_bytes + waiting,
            disk_bytes=on_disk,
            read_bytes=0 if disk is None else disk.read_bytes,
            evicted=self._memory.evicted,
            recovered=0 if disk is None else disk.recovered,
            dropped=self._dropped + (0 if disk is None else disk.dropped),
        )

    def flush(self) -> None:
        """Wait until everything that was put can be read by other processes."""
        self._check_process()
        if self._disk is not None and self._writer is not None:
            self._writer.flush()
            self._disk.emit_warnings()

    def rest(self) -> None:
        """Flush, end the thread and close the files. Entries in RAM stay."""
        self._check_process()
        if self._disk is not None and self._writer is not None:
            self._writer.close()
            self._disk.emit_warnings()
            self._disk.close()

    def close(self) -> None:
        """Flush, and free everything. The store may be used again, without the entries that were only in RAM."""
        self.rest()
        with self._lock:
            self._memory.clear()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _check_process(self) -> None:
        """Reset threads, locks and handles after a fork; they belong to the parent process."""
        if self._process != os.getpid():
            if self._disk is not None:
                self._disk.after_fork()
            self._begin()


def _folder_path(cache_dir: Path | str) -> Path:
    """The path of a folder. It may not exist yet; the disk tier warns if it is not readable."""
    name = os.path.expanduser(cache_dir)
    if (os.path.lexists(name) and not os.path.isdir(name)) or "\0" in name:
        what = "not a path" if "\0" in name else "a file"
        raise ConfigurationError(
            f"cache_dir is {str(cache_dir)!r}, {what}: expected a folder, which may not exist yet."
        )
    return Path(name)


@cache
def _warn_of_network(root: Path, kind: str, local: Path | None) -> None:
    """Warn once in a process, and once on a machine with several ranks."""
    # Set by Lightning and torchrun, or by SLURM, Open MPI and LSF, which start the processes themselves.
    ranks = ("LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK", "JSM_NAMESPACE_LOCAL_RANK")
    if next((os.environ[name] for name in ranks if name in os.environ), "0") == "0":
        where = f"kept in {local}, on this machine," if local else "kept in memory"
        warnings.warn(
            f"FrozenPrefixCache: {root} is on a network file system ({kind}), where LMDB can lose or damage entries: "
            f"hidden states are {where} instead. Give a cache_dir on a local disk of each node.",
            stacklevel=2,
        )


def _local(root: Path) -> Path | None:
    """Return the folder that replaces one on a network file system, or the folder itself; ``None`` if none can."""
    found = replacement(root)
    if found is None:
        return root
    _warn_of_network(root, found.file_system, found.folder)
    return found.folder


def _check_namespace(namespace: bytes) -> None:
    if len(namespace) != KEY_BYTES:
        raise ValueError(f"A namespace has {len(namespace)} bytes: expected {KEY_BYTES}.")
