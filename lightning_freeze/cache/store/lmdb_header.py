"""Compares the header of an LMDB file with the size of the file, before LMDB maps it.

LMDB trusts the header. Reading a page beyond the end of the file ends the process with SIGBUS.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

from lightning_freeze.cache.store.plain_files import open_file

_MAGIC = struct.pack("=I", 0xBEEFC0DE)
# Behind a page header of 16 bytes (LMDB 0.9) or 24 (1.0): magic, version, address, map size, two databases of 48 bytes,
# the last page, the transaction. The first field of the first database is the page size.
_PAGE_HEADERS = (16, 24)
_META = struct.Struct("=4sIQQI44x48xQQ")
_SMALLEST_PAGE, _LARGEST_PAGE = 256, 65536


class Damaged(Exception):
    """The file does not match its header."""


@dataclass(frozen=True)
class Header:
    """The header of a file.

    Attributes:
        page_bytes: Size of a page.
        pages: Number of pages.
    """

    page_bytes: int
    pages: int


def read_header(path: Path) -> Header | None:
    """Read the header of a file, and check that the file is as long as it says.

    Returns:
        The header; ``None`` if the file is empty because it is just being created.

    Raises:
        Damaged: If it is no LMDB file, or shorter than its header says.
        OSError: If it cannot be read.
    """
    descriptor = open_file(path)
    try:
        start = os.read(descriptor, _PAGE_HEADERS[-1] + _META.size)
        if not start:
            return None
        offset = next((n for n in _PAGE_HEADERS if start[n : n + len(_MAGIC)] == _MAGIC), None)
        if offset is None:
            raise Damaged("the file is no LMDB file")
        page_bytes, last = _meta(start, offset)
        if page_bytes & (page_bytes - 1) or not _SMALLEST_PAGE <= page_bytes <= _LARGEST_PAGE:
            raise Damaged(f"its header tells a page size of {page_bytes}")
        os.lseek(descriptor, page_bytes, os.SEEK_SET)
        page_bytes_again, other = _meta(os.read(descriptor, _PAGE_HEADERS[-1] + _META.size), offset)
        if page_bytes_again != page_bytes:
            raise Damaged("its headers tell different page sizes")
        # The size is read last: a process that is writing extends the file before it updates the header.
        pages = max(last, other) + 1
        if os.fstat(descriptor).st_size < pages * page_bytes:
            raise Damaged("the file is shorter than its header says")
    finally:
        os.close(descriptor)
    return Header(page_bytes, pages)


def _meta(page: bytes, offset: int) -> tuple[int, int]:
    """Page size and last page of one of the two headers."""
    if len(page) < offset + _META.size:
        raise Damaged("the file is shorter than its header says")
    magic, _, _, _, page_bytes, last, _ = _META.unpack_from(page, offset)
    if magic != _MAGIC:
        raise Damaged("the file is no LMDB file")
    return page_bytes, last
