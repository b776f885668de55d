"""Sizes in bytes: parsing, formatting, and the memory that is available."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from lightning_freeze.errors import ConfigurationError, suggest

_UNITS = {"": 1, "B": 1, **{f"{unit}B": 1000**i for i, unit in enumerate("KMGT", 1)}}
_UNITS.update({f"{unit}iB": 1024**i for i, unit in enumerate("KMGT", 1)})
_FALLBACK = 16 * 1024**3
_CGROUP = Path("/sys/fs/cgroup")


def parse_size(value: str | int | None, name: str = "size") -> int | None:
    """Return a size in bytes.

    Args:
        value: ``"4GiB"`` (1024), ``"500MB"`` (1000), a number of bytes, or ``None``, which is returned as it is.
        name: Name of the argument, for the error message.

    Raises:
        ConfigurationError: If it cannot be read, or is negative.
    """
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 0:
            raise ConfigurationError(f"{name} is {value}: expected a number of bytes that is not negative.")
        return value
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z]*)\s*", value) if isinstance(value, str) else None
    if match is None:
        raise ConfigurationError(f"{name} is {value!r}: expected a size like '4GiB' or '500MB', or a number of bytes.")
    units = {unit.lower(): factor for unit, factor in _UNITS.items()}
    factor = units.get(match[2].lower())
    if factor is None:
        nearest = suggest(match[2], [unit for unit in _UNITS if unit])
        raise ConfigurationError(f"{name} is {value!r}: {match[2]!r} is no unit; expected one like 'GiB'.{nearest}")
    return int(float(match[1]) * factor)


def show_size(number: float) -> str:
    """Return a number of bytes for reading, as in ``"3.5 GiB"``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} B" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"


def default_memory(processes: int | None = None) -> int:
    """Return the memory that one process may take without a ``max_memory``: a quarter of its share of the free memory.

    Args:
        processes: How many processes share the machine; by default ``LOCAL_WORLD_SIZE``, which launchers set, or 1.
    """
    count = processes or int(os.environ.get("LOCAL_WORLD_SIZE", "1") or 1)
    return available_memory() // 4 // max(1, count)


def available_memory() -> int:
    """Return the available memory in bytes, according to the kernel or the limit of the container."""
    found = [size for size in (_system_memory(), _container_memory()) if size is not None]
    return max(0, min(found, default=_FALLBACK))


def _system_memory() -> int | None:
    try:
        match = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        match = None
    if match is not None:
        return int(match[1]) * 1024
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, OSError, ValueError):
        return None


def _container_memory() -> int | None:
    try:
        limit, used = (_CGROUP / name for name in ("memory.max", "memory.current"))
        return int(limit.read_text()) - int(used.read_text())
    except (OSError, ValueError):
        return None  # no container, or "max"


def bytes_in(rows: Sequence[Tensor]) -> int:
    """The size of some tensors in bytes."""
    return sum(row.numel() * row.element_size() for row in rows)
