"""Writes files so that a reader never sees half of one, also after the process is killed."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.cloud_io import get_filesystem

#: Stands between the name of a protocol and the path, as in ``s3://bucket/folder``.
_PROTOCOL = "://"


def path_in(folder: str, name: str) -> str:
    """The path of a file in a folder, which may be the address of a remote one."""
    return f"{folder.rstrip('/')}/{name}" if _PROTOCOL in folder else os.path.join(folder, name)


def write_atomically(path: str, text: str) -> None:
    """Write a file, or replace it at once.

    Args:
        path: The file. Its folder is made if it does not exist.
        text: What to write; characters that UTF-8 does not have are replaced.

    Raises:
        OSError: If it cannot be written.
    """
    content = text.encode("utf-8", errors="replace")
    if _PROTOCOL in path:  # object stores replace a file at once themselves
        with get_filesystem(path).open(path, "wb") as remote:
            remote.write(content)
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        draft.write_bytes(content)
        os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)


def json_text(value: Any) -> str:
    """The text of a JSON file; numbers that JSON does not have, NaN and the infinite ones, are ``null``.

    Args:
        value: What ``json.dumps`` takes.
    """
    return json.dumps(_finite(value), indent=2, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
