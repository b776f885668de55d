"""The cache folder: what marks it as one, what lies in it, and how parts of it are removed.

``lightning-freeze-cache.json`` marks the folder and tells the version of the format. Each namespace, one state of one
frozen prefix, is a folder named with 32 hex digits: ``data.mdb`` and ``lock.mdb`` are its entries, an LMDB environment;
``info.json`` says what they are, and its modification time is the last use; ``independent.json`` has the size of the
largest batch in which samples were seen not to depend on one another.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_freeze.cache.store.entry import VERSION
from lightning_freeze.cache.store.sizes import show_size

MARKER = "lightning-freeze-cache.json"
DATA = "data.mdb"
INFO = "info.json"
_NOTE = "independent.json"
#: A namespace that was used within this many seconds is never evicted to make room for another.
IDLE = 600.0
#: Room that is left on the disk: a full one would also stop the run's own checkpoints.
_MOST_RESERVE, _RESERVE_SHARE = 1024**3, 0.05


@dataclass(frozen=True)
class Namespace:
    """One namespace on disk.

    Attributes:
        path: Its folder.
        info: What was declared of it.
        bytes: What it takes on disk.
        used: When it was last used, in seconds since 1970.
    """

    path: Path
    info: dict[str, Any]
    bytes: int
    used: float

    @property
    def name(self) -> str:
        """Its identity, 32 hex digits."""
        return self.path.name


def version_of(root: Path) -> int | None:
    """Return the version of the cache in a folder, ``None`` if there is none (or its marker cannot be read)."""
    try:
        content = json.loads((root / MARKER).read_text(encoding="utf-8"))
        return int(content["version"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def mark(root: Path) -> None:
    """Make a folder a cache of this version, if it is none yet.

    Raises:
        OSError: If it cannot be written.
    """
    root.mkdir(parents=True, exist_ok=True)
    if not (root / MARKER).exists():
        write_json(root / MARKER, {"format": "lightning-freeze cache", "version": VERSION})


def device(root: Path) -> int | None:
    """Return which disk a folder is on, ``None`` if it is gone."""
    try:
        return root.stat().st_dev
    except OSError:
        return None


def namespaces(root: Path) -> list[Namespace]:
    """Return the namespaces in a cache folder, the least recently used first."""
    found = []
    for path in root.iterdir() if root.is_dir() else ():
        if re.fullmatch(r"[0-9a-f]{32}", path.name) and (path / DATA).is_file():
            try:
                found.append(Namespace(path, _read_info(path), bytes_on_disk(path), _last_use(path)))
            except OSError:
                continue  # removed meanwhile by another process
    return sorted(found, key=lambda namespace: (namespace.used, namespace.name))


def make_room(path: Path, size: int, budget: int | None) -> str | None:
    """Make room for more entries, if need be by removing other namespaces that have been idle long enough.

    Args:
        path: The folder of the namespace that they belong to.
        size: How many bytes they take.
        budget: How many bytes all namespaces together may take, ``None`` for no limit.

    Returns:
        Why there is none, ``None`` if there is.

    Raises:
        OSError: If the folder cannot be read.
    """
    root = path.parent
    disk = shutil.disk_usage(root)
    if disk.free - size < min(_MOST_RESERVE, _RESERVE_SHARE * disk.total):
        return f"the disk of {root} is full: nothing more is added."
    if budget is None:
        return None
    held = namespaces(root)
    taken = sum(found.bytes for found in held) + size
    for found in held:
        if taken <= budget:
            return None
        if time.time() - found.used > IDLE and found.name != path.name:
            with contextlib.suppress(OSError):
                remove(found)
                taken -= found.bytes
    return None if taken <= budget else f"{root} has reached max_disk ({show_size(budget)})."


def bytes_on_disk(path: Path) -> int:
    """Return what a namespace takes on disk, 0 if it is gone."""
    try:
        stat = (path / DATA).stat()
    except OSError:
        return 0
    return min(stat.st_size, getattr(stat, "st_blocks", stat.st_size) * 512) or stat.st_size


def remove(namespace: Namespace) -> None:
    """Remove a namespace, at once for whoever opens it from now on. Processes that have it open go on reading it.

    Raises:
        OSError: If it cannot be removed.
    """
    aside = namespace.path.with_name(f".removed-{namespace.name}-{os.getpid()}-{time.monotonic_ns()}")
    namespace.path.rename(aside)
    shutil.rmtree(aside)


def touch(path: Path) -> None:
    """Note that a namespace is in use."""
    # A read-only folder keeps no such note.
    with contextlib.suppress(OSError):
        os.utime(path / INFO)


def note(path: Path, extent: int) -> None:
    """Note in which batch samples were seen not to depend on one another, where that can be written.

    Args:
        path: The folder of the namespace.
        extent: The size of the batch.
    """
    with contextlib.suppress(OSError):
        if path.is_dir():
            write_json(path / _NOTE, {"elements": extent})


def noted(path: Path) -> int:
    """The size of that batch, 0 if there is no note, or none that can be read."""
    try:
        return int(json.loads((path / _NOTE).read_text(encoding="utf-8"))["elements"])
    except (OSError, ValueError, TypeError, KeyError):
        return 0


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a file that no other process ever sees half written.

    Raises:
        OSError: If it cannot be written.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def _read_info(path: Path) -> dict[str, Any]:
    try:
        content = json.loads((path / INFO).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _last_use(path: Path) -> float:
    file = path / INFO
    return (file if file.exists() else path / DATA).stat().st_mtime
