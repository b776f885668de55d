"""Files in a folder that other users may write to: they are used only if they are of the expected kind.

A symbolic link in a shared folder would redirect a read or a write to another file. So these functions never follow a
link below the cache folder, open only regular files, and write only to names that cannot be guessed. New folders and
files are accessible to their owner only (0700 and 0600).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import tempfile
from pathlib import Path
from typing import Any

FOLDER_MODE, FILE_MODE = 0o700, 0o600
#: Maximum size of a JSON file; files of this package hold a few fields.
_LARGEST_JSON = 64 * 1024
# Without O_NONBLOCK, opening a FIFO waits for a writer. Windows has neither flag.
_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
_KINDS = {stat.S_IFLNK: "a symbolic link", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}


class RefusedError(OSError):
    """A file or a folder is of the wrong kind, for example a symbolic link."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(errno.ELOOP, f"{path.name} is {what}")

    def __str__(self) -> str:
        return str(self.strerror)


def is_file(path: Path) -> bool:
    """Whether a path is a regular file itself, not a link to one. False if that is unknown."""
    return _is(path, stat.S_ISREG)


def is_folder(path: Path) -> bool:
    """Whether a path is a folder itself, not a link to one. False if that is unknown."""
    return _is(path, stat.S_ISDIR)


def check_file(path: Path) -> os.stat_result | None:
    """Check that a path is a regular file under one name, or does not exist.

    Returns:
        Its status, ``None`` if it does not exist.

    Raises:
        RefusedError: If it is anything else.
        OSError: If its status cannot be read.
    """
    try:
        found = path.stat(follow_symlinks=False)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(found.st_mode):
        raise RefusedError(path, _kind(found))
    if found.st_nlink > 1:
        raise RefusedError(path, "a hard link")
    return found


def check_folder(path: Path) -> None:
    """Check that a path is a folder itself.

    Raises:
        RefusedError: If it is anything else.
        OSError: If it does not exist, or its status cannot be read.
    """
    found = path.stat(follow_symlinks=False)
    if not stat.S_ISDIR(found.st_mode):
        raise RefusedError(path, _kind(found))


def make_folder(path: Path) -> None:
    """Create a folder that only its owner can access, if it does not exist.

    Raises:
        RefusedError: If there is something else in its place.
        OSError: If it cannot be created.
    """
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=FOLDER_MODE)
    check_folder(path)


def open_file(path: Path) -> int:
    """Open a regular file for reading and return its descriptor.

    Raises:
        RefusedError: If it is a link, a FIFO or the like.
        OSError: If it cannot be opened.
    """
    check_file(path)
    descriptor = os.open(path, _FLAGS)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise RefusedError(path, "not a regular file")
    return descriptor


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a small JSON file, an empty one if there is none that can be read."""
    try:
        with os.fdopen(open_file(path), "rb") as file:
            data = file.read(_LARGEST_JSON + 1)
        content = json.loads(data) if len(data) <= _LARGEST_JSON else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def read_number(path: Path, field: str) -> int | None:
    """Return a whole number from a small JSON file, ``None`` if there is none that can be read."""
    value = read_json(path).get(field)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a file atomically. A link in its place is replaced, not followed.

    Raises:
        OSError: If it cannot be written.
    """
    descriptor, part = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(json.dumps(content, indent=1) + "\n")
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(part)
        raise


def _is(path: Path, kind: Any) -> bool:
    try:
        return bool(kind(path.stat(follow_symlinks=False).st_mode))
    except (OSError, ValueError):
        return False


def _kind(found: os.stat_result) -> str:
    return _KINDS.get(stat.S_IFMT(found.st_mode), "a regular file" if stat.S_ISREG(found.st_mode) else "a device")
