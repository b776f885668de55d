"""The cache folder: what marks it as one, what lies in it, and how parts of it are removed.

``lightning-freeze-cache.json`` marks the folder and tells the version of the format. Each namespace, one state of one
frozen prefix, is a folder named with 32 hex digits: ``data.mdb`` and ``lock.mdb`` are its entries, an LMDB environment;
``info.json`` says what they are, and its modification time is the last use; ``independent.json`` has the size of the
largest batch in which samples were seen not to depend on one another.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_freeze.cache.store.entry import VERSION
from lightning_freeze.cache.store.plain_files import (
    FOLDER_MODE,
    check_folder,
    is_file,
    is_folder,
    read_json,
    read_number,
    write_json,
)
from lightning_freeze.cache.store.sizes import show_size

MARKER = "lightning-freeze-cache.json"
DATA = "data.mdb"
LOCK = "lock.mdb"
INFO = "info.json"
_NOTE = "independent.json"
#: A namespace that was used within this many seconds is never evicted to make room for another.
IDLE = 600.0
#: Room that is left on the disk: a full one would also stop the run's own checkpoints.
_MOST_RESERVE, _RESERVE_SHARE = 1024**3, 0.05
_REMOVED, _PART = ".removed-", ".part"
_NAMESPACE = re.compile(r"[0-9a-f]{32}")


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


def is_marked(root: Path) -> bool:
    """Whether a folder has a marker, of whatever kind.

    Raises:
        OSError: If the folder cannot be read.
    """
    try:
        (root / MARKER).stat(follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def version_of(root: Path) -> int | None:
    """Return the version of the cache in a folder, ``None`` if there is none (or its marker cannot be read)."""
    return read_number(root / MARKER, "version")


def mark(root: Path) -> None:
    """Make a folder a cache of this version, if it is none yet.

    Raises:
        OSError: If it cannot be written.
    """
    root.parent.mkdir(parents=True, exist_ok=True)
    root.mkdir(mode=FOLDER_MODE, exist_ok=True)
    if not is_marked(root):
        write_json(root / MARKER, {"format": "lightning-freeze cache", "version": VERSION})


def device(root: Path) -> int | None:
    """Return which disk a folder is on, ``None`` if it is gone."""
    try:
        return root.stat().st_dev
    except (OSError, ValueError):
        return None


def namespaces(root: Path) -> list[Namespace]:
    """Return the namespaces in a cache folder, the least recently used first. Links are left out.

    Raises:
        OSError: If the folder cannot be read.
    """
    found = []
    for path in root.iterdir() if root.is_dir() else ():
        if _NAMESPACE.fullmatch(path.name) and is_folder(path) and is_file(path / DATA):
            try:
                found.append(Namespace(path, read_json(path / INFO), bytes_on_disk(path), _last_use(path)))
            except OSError:
                continue  # removed meanwhile by another process
    return sorted(found, key=lambda namespace: (namespace.used, namespace.name))


def refused(root: Path) -> list[Path]:
    """Return what lies in a cache folder under the name of a namespace but is none, for example a symbolic link.

    Raises:
        OSError: If the folder cannot be read.
    """
    named = [path for path in root.iterdir() if _NAMESPACE.fullmatch(path.name)]
    return sorted(path for path in named if not is_folder(path) or (path / DATA).is_symlink())


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
        found = (path / DATA).stat(follow_symlinks=False)
    except OSError:
        return 0
    return min(found.st_size, getattr(found, "st_blocks", found.st_size) * 512) or found.st_size


def remove(namespace: Namespace) -> None:
    """Remove a namespace, at once for whoever opens it from now on. Processes that have it open go on reading it.

    Raises:
        OSError: If it cannot be removed.
    """
    check_folder(namespace.path)
    aside = Path(tempfile.mkdtemp(prefix=_REMOVED, dir=namespace.path.parent))
    try:
        namespace.path.rename(aside / namespace.name)
    finally:
        _remove_tree(aside)


def sweep(root: Path) -> None:
    """Remove what processes that were killed have left half removed or half written.

    Raises:
        OSError: If it cannot be removed.
    """
    for path in list(root.iterdir()):
        if path.name.startswith(_REMOVED) or (path.name.startswith(f".{MARKER}.") and path.name.endswith(_PART)):
            _remove_tree(path)


def touch(path: Path) -> None:
    """Note that a namespace is in use."""
    # A read-only folder keeps no such note.
    with contextlib.suppress(OSError):
        if is_folder(path) and is_file(path / INFO):
            os.utime(path / INFO, follow_symlinks=os.utime not in os.supports_follow_symlinks)


def note(path: Path, extent: int) -> None:
    """Note in which batch samples were seen not to depend on one another, where that can be written.

    Args:
        path: The folder of the namespace.
        extent: The size of the batch.
    """
    with contextlib.suppress(OSError):
        if is_folder(path):
            write_json(path / _NOTE, {"elements": extent})


def noted(path: Path) -> int:
    """The size of that batch, 0 if there is no note, or none that can be read."""
    return (read_number(path / _NOTE, "elements") or 0) if is_folder(path) else 0


def _last_use(path: Path) -> float:
    file = path / INFO
    return (file if is_file(file) else path / DATA).stat(follow_symlinks=False).st_mtime


def _remove_tree(path: Path) -> None:
    """Remove a folder and what is in it, or a link itself. What another process removes meanwhile is no error."""
    with contextlib.suppress(FileNotFoundError):
        if not is_folder(path):
            path.unlink()
            return
        for folder, _, _ in os.walk(path):
            # What is in a read-only folder cannot be removed.
            with contextlib.suppress(OSError):
                os.chmod(folder, FOLDER_MODE)
        shutil.rmtree(path)
