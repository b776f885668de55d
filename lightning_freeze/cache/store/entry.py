"""The bytes of one entry, the same in RAM and on disk: a header of 64 bytes, then the data of the tensor.

The header is little-endian: bytes 0 to 7 hold the checksum, 8 the version of the format, 9 the dtype, 10 the number of
dimensions, 16 to 63 up to six sizes. The checksum is xxh3 (64 bits) over the namespace, the key and everything behind
the checksum, so that an intact entry under a wrong key is detected too.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from itertools import accumulate
from operator import mul
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: Version of the layout of entries and of the cache folder. Caches of other versions are not read.
VERSION = 1
HEADER = 64
_CHECKSUM = struct.Struct("<Q")
_FIELDS = struct.Struct("<BBB5x6Q")
_MOST_DIMENSIONS = 6
# Never reorder: the position is what is stored.
_DTYPES = (
    torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool, torch.complex64, torch.complex128, torch.float8_e4m3fn, torch.float8_e5m2,
)  # fmt: skip
_CODES = {dtype: code for code, dtype in enumerate(_DTYPES)}

Bytes = NDArray[np.uint8]


def entry_bytes(tensor: Tensor) -> int:
    """Return how many bytes the entry of a tensor takes.

    Raises:
        ValueError: If its dtype or its number of dimensions cannot be stored.
    """
    if tensor.dtype not in _CODES:
        names = ", ".join(str(dtype) for dtype in _DTYPES)
        raise ValueError(f"A tensor has dtype {tensor.dtype}: expected one of {names}.")
    if tensor.dim() > _MOST_DIMENSIONS:
        raise ValueError(f"A tensor has {tensor.dim()} dimensions: expected at most {_MOST_DIMENSIONS}.")
    return HEADER + tensor.numel() * tensor.element_size()


def write_entry(tensor: Tensor, place: Tensor) -> None:
    """Write a tensor as an entry, without its checksum.

    Args:
        tensor: Any layout, any device.
        place: The destination: a uint8 tensor of :func:`entry_bytes` elements on the CPU.
    """
    sizes = [*tensor.shape, *[0] * (_MOST_DIMENSIONS - tensor.dim())]
    place[:HEADER] = torch.frombuffer(
        bytearray(_CHECKSUM.pack(0) + _FIELDS.pack(VERSION, _CODES[tensor.dtype], tensor.dim(), *sizes)),
        dtype=torch.uint8,
    )
    _as_tensor(place, tensor.dtype, tensor.shape).copy_(tensor.detach())


class EntryReader:
    """Reads entries that were checked before, without a copy.

    Args:
        data: Bytes (uint8) that hold entries.
    """

    def __init__(self, data: Tensor) -> None:
        self._data = data
        self._buffer = data.numpy().data
        self._typed: dict[torch.dtype, Tensor] = {}

    def read(self, start: int = 0) -> Tensor:
        """Return the tensor of an entry, a view of the data.

        Args:
            start: Where the entry begins.
        """
        _, code, dimensions, *sizes = _FIELDS.unpack_from(self._buffer, start + _CHECKSUM.size)
        dtype, shape = _DTYPES[code], sizes[:dimensions]
        typed = self._typed.get(dtype)
        if typed is None:
            usable = len(self._data) // dtype.itemsize * dtype.itemsize
            typed = self._typed[dtype] = self._data[:usable].view(dtype)
        strides = list(accumulate(shape[:0:-1], mul, initial=1))[::-1] if shape else []
        # One operation rather than one for each of slice, dtype and shape: this runs for each sample of a batch.
        return typed.as_strided(shape, strides, typed.storage_offset() + (start + HEADER) // dtype.itemsize)


def seal(name: bytes, entry: Any) -> None:
    """Write the checksum into an entry.

    Args:
        name: Namespace and key.
        entry: The entry's bytes, a writable buffer.
    """
    _CHECKSUM.pack_into(entry, 0, _checksum(name, entry))


def is_sound(name: bytes, entry: Any) -> bool:
    """Whether bytes are an entry of this version that was stored under this name, whole and unchanged.

    Args:
        name: Namespace and key.
        entry: The bytes, a buffer.
    """
    view = memoryview(entry)
    if len(view) < HEADER or _CHECKSUM.unpack_from(view)[0] != _checksum(name, view):
        return False
    version, code, dimensions, *sizes = _FIELDS.unpack_from(view, _CHECKSUM.size)
    if version != VERSION or code >= len(_DTYPES) or dimensions > _MOST_DIMENSIONS:
        return False
    return bool(HEADER + math.prod(sizes[:dimensions]) * _DTYPES[code].itemsize == len(view))


def dtype_of(entry: Any) -> str:
    """Return the name of the dtype in an entry's header, such as ``"bfloat16"``; ``"?"`` if there is none."""
    view = memoryview(entry)
    code = view[_CHECKSUM.size + 1] if len(view) >= HEADER else len(_DTYPES)
    return str(_DTYPES[code]).removeprefix("torch.") if code < len(_DTYPES) else "?"


def _checksum(name: bytes, entry: Any) -> int:
    # Imported late: the error in `keys` says what to install if it is missing.
    import xxhash

    return int(xxhash.xxh3_64_intdigest(memoryview(entry)[_CHECKSUM.size :], xxhash.xxh3_64_intdigest(name)))


def _as_tensor(place: Tensor, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    return place[HEADER:].view(dtype).view(shape)
