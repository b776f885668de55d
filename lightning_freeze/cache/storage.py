"""Where and how hidden states are stored in a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lightning_freeze.cache.identity.keys import new_hash
from lightning_freeze.cache.store.accelerator import AcceleratorTier
from lightning_freeze.cache.store.sizes import default_memory, parse_size

#: The dtypes that save space, by their names.
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Storage:
    """Where and how hidden states are stored.

    Attributes:
        store: The store in RAM and on disk; a :class:`~lightning_freeze.cache.prefix.pass_state.Store`.
        accelerator: The store on the device of the model, if there is one.
        dtype: The dtype to store, ``None`` for the one that was computed.
        budget: Bytes that the store may hold, ``None`` for no limit.
        verify: Number of batches with hits that are compared with a real forward pass, for each identity of a prefix.
        trims_padding: Whether samples may be stored without padding.
        offload: Whether weights of skipped layers leave the memory of the device.
        folder: Where files of the run may be written: the folder of the store, ``None`` if it has none on this machine.
    """

    store: Any
    accelerator: AcceleratorTier | None
    dtype: torch.dtype | None
    budget: int | None
    verify: int
    trims_padding: bool
    offload: bool = False
    folder: Path | None = None

    @property
    def stored_bytes(self) -> int:
        """Bytes that are stored in all places."""
        held = int(getattr(getattr(self.store, "stats", None), "stored_bytes", 0))
        return held + (self.accelerator.bytes if self.accelerator is not None else 0)

    def release(self) -> None:
        """Free the memory of the accelerator, and close files and threads. Entries in RAM stay."""
        if self.accelerator is not None:
            self.accelerator.clear()
        self.store.rest()


def open_storage(
    store: Any,
    cache_dir: Path | None,
    max_memory: str | int | None,
    max_disk: str | int | None,
    max_accelerator_memory: str | int | None,
    dtype: str | None,
    verify: int,
    trim_padding: bool,
    offload: bool = False,
) -> Storage:
    """Open the storage of a run.

    Args:
        store: A store that is open already, ``None`` to open one.
        cache_dir: As for :class:`~lightning_freeze.FrozenPrefixCache`, like all other arguments.
        max_memory: Budget in RAM.
        max_disk: Budget in ``cache_dir``.
        max_accelerator_memory: Budget on the accelerator.
        dtype: Name of the dtype to store.
        verify: Number of batches to compare.
        trim_padding: Whether samples may be stored without padding.
        offload: Whether weights of skipped layers leave the memory of the device.

    Raises:
        ConfigurationError: If a library that is needed is not installed.
    """
    memory, disk, on_device = parse_size(max_memory), parse_size(max_disk), parse_size(max_accelerator_memory)
    if store is None:
        from lightning_freeze.cache.store.store import open_store

        new_hash()  # raises before the first batch if xxhash is not installed
        store = open_store(cache_dir, max_memory, max_disk)
    budget = None
    if cache_dir is None or disk is not None:
        budget = (default_memory() if memory is None else memory) + (disk or 0)
    accelerator = AcceleratorTier(on_device) if on_device else None
    folder = getattr(store, "folder", None)  # not `cache_dir`, which may be on a network file system
    return Storage(store, accelerator, DTYPES.get(dtype or ""), budget, verify, trim_padding, offload, folder)
