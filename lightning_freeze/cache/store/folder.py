"""The cache folder: its marker, its contents, and the removal of namespaces.

``lightning-freeze-cache.json`` marks the folder and holds the version of the format. Each namespace, one state of one
frozen prefix, is a folder named with 32 hex digits: ``data.mdb`` and ``lock.mdb`` are its entries, an LMDB environment;
``info.json`` describes them, and its modification time is the last use; ``independent.json`` has the size of the
largest batch in which samples were found to be independent of one another.
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
#: Space that is left free on the disk: the checkpoints of the run need some.
_MOST_RESERVE, _RESERVE_SHARE = 1024**3, 0.05
_REMOVED, _PART = ".removed-", ".part"
_NAMESPACE = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Namespace:
    """One namespace on disk.

    Attributes:
        path: Its folder.
        info: Its description.
        bytes: Its size on disk.
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
    """Whether a folder has a marker, of any version.

    Raises:
        OSError: If the folder cannot be read.
    """
    try:
        (root / MARKER).stat(follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def version_of(root: Path) -> int | None:
    """Return the version of the cache in a folder; ``None`` if there is none, or its marker cannot be read."""
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
    """Return the number of the disk that a folder is on; ``None`` if it does not exist."""
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
                continue  # just removed by another process
    return sorted(found, key=lambda namespace: (namespace.used, namespace.name))


def refused(root: Path) -> list[Path]:
    """Return paths that have the name of a namespace but are not one, for example symbolic links.

    Raises:
        OSError: If the folder cannot be read.
    """
    named = [path for path in root.iterdir() if _NAMESPACE.fullmatch(path.name)]
    return sorted(path for path in named if not is_folder(path) or (path / DATA).is_symlink())


def make_room(path: Path, size: int, budget: int | None) -> str | None:
    """Make room for more entries, if necessary by removing other namespaces that were not used for long enough.

    Args:
        path: The folder of the namespace that they belong to.
        size: Their size in bytes.
        budget: Maximum size of all namespaces together in bytes; ``None`` for no limit.

    Returns:
        The reason why there is no room; ``None`` if there is room.

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
    """Return the size of a namespace on disk in bytes; 0 if it does not exist."""
    try:
        found = (path / DATA).stat(follow_symlinks=False)
    except OSError:
        return 0
    return min(found.st_size, getattr(found, "st_blocks", found.st_size) * 512) or found.st_size


def remove(namespace: Namespace) -> None:
    """Remove a namespace. It cannot be opened from now on; processes that have it open can still read it.

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
    """Remove namespaces and files that killed processes have left half removed or half written.

    Raises:
        OSError: If it cannot be removed.
    """
    for path in list(root.iterdir()):
        if path.name.startswith(_REMOVED) or (path.name.startswith(f".{MARKER}.") and path.name.endswith(_PART)):
            _remove_tree(path)


def touch(path: Path) -> None:
    """Record that a namespace is in use."""
    # This is not possible in a read-only folder.
    with contextlib.suppress(OSError):
        if is_folder(path) and is_file(path / INFO):
            os.utime(path / INFO, follow_symlinks=os.utime not in os.supports_follow_symlinks)


def note(path: Path, extent: int) -> None:
    """Record the size of a batch in which samples were found to be independent, if the folder is writable.

    Args:
        path: The folder of the namespace.
        extent: The size of the batch.
    """
    with contextlib.suppress(OSError):
        if is_folder(path):
            write_json(path / _NOTE, {"elements": extent})


def noted(path: Path) -> int:
    """The size that :func:`note` recorded; 0 if there is none, or it cannot be read."""
    return (read_number(path / _NOTE, "elements") or 0) if is_folder(path) else 0


def _last_use(path: Path) -> float:
    file = path / INFO
    return (file if is_file(file) else path / DATA).stat(follow_symlinks=False).st_mtime


def _remove_tree(path: Path) -> None:
    """Remove a folder with its contents, or a link itself; ignore what another process removes at the same time."""
    with contextlib.suppress(FileNotFoundError):
        if not is_folder(path):
            path.unlink()
            return
        for folder, _, _ in os.walk(path):
            # The contents of a read-only folder cannot be removed.
            with contextlib.suppress(OSError):
                os.chmod(folder, FOLDER_MODE)
        shutil.rmtree(path)
