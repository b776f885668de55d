"""Folders on network file systems, where LMDB must not be used, and the local folders that replace them.

LMDB maps its file into memory and coordinates processes through a lock file with shared memory. On a network file
system neither is coherent between machines, so entries could be damaged without notice
(https://lmdb.readthedocs.io, http://www.lmdb.tech/doc: "Do not use LMDB databases on remote filesystems").
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from lightning_freeze.cache.store.plain_files import make_folder

_MOUNTS = Path("/proc/self/mounts")
#: File systems that several machines can write to at the same time, or whose memory maps are not coherent. FUSE file
#: systems have names such as ``fuse.sshfs``, or ``fuse`` alone if nothing is known of them.
_NETWORK = re.compile(
    r"(nfs\d?|cifs|smb\d?|smbfs|smb3|lustre|gpfs|beegfs\w*|ceph|afs|kafs|auristorfs|9p|coda|ncpfs|pvfs2|orangefs|panfs"
    r"|wekafs|gfs2?|ocfs2|vboxsf|vmhgfs|prl_fs|quobyte|moosefs|glusterfs|mmfs|dvs"
    r"|fuse|fuse\.(?!(fuseblk|ntfs|ext[234]|exfat|overlay|fuse-overlayfs|portal|gvfsd|squash|gocryptfs|encfs).*).*)"
)
_IN_MEMORY = frozenset({"tmpfs", "ramfs", "hugetlbfs"})
_OTHERS_WRITE = 0o022
_ESCAPED = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class Replacement:
    """Where the entries of a folder on a network file system are kept.

    Attributes:
        file_system: The type of the network file system, such as ``nfs4``.
        folder: A folder on a local disk of this machine; ``None`` if there is none.
    """

    file_system: str
    folder: Path | None


def replacement(root: Path) -> Replacement | None:
    """Return where the entries of a folder are kept if it is on a network file system; ``None`` if it is not.

    The local folder is in the folder for temporary files (``TMPDIR``), below one that only this user can write to. Its
    name depends on the path of the folder alone, so that later runs on the same machine read the same entries.

    Args:
        root: The folder; it may not exist yet.
    """
    kind = file_system(root)
    if kind is None or not _NETWORK.fullmatch(kind):
        return None
    return Replacement(kind, _local_folder(root))


def file_system(path: Path) -> str | None:
    """Return the type of the file system that a path is on; ``None`` where the system does not tell.

    Args:
        path: The path; it may not exist yet.
    """
    try:
        mounts = _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape")
        resolved = path.resolve()
    except (OSError, RuntimeError):
        return None
    kind, depth = None, -1
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        place = Path(_ESCAPED.sub(lambda match: chr(int(match[1], 8)), fields[1]))
        # Of several mounts on one folder, the last one is visible.
        if resolved.is_relative_to(place) and len(place.parts) >= depth:
            kind, depth = fields[2], len(place.parts)
    return kind


def _local_folder(root: Path) -> Path | None:
    parent = Path(tempfile.gettempdir())
    kind = file_system(parent)
    if kind is None or kind in _IN_MEMORY or _NETWORK.fullmatch(kind):
        return None
    own = parent / f"lightning-freeze-{os.getuid()}"
    try:
        make_folder(own)
        status = own.stat(follow_symlinks=False)
    except OSError:
        return None
    if status.st_uid != os.getuid() or status.st_mode & _OTHERS_WRITE:
        return None  # somebody else has made it, who could read or replace what is in it
    return own / hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]
