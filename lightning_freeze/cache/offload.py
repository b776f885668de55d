"""Moves the weights of skipped layers out of the way, and brings them back when anything needs them.

On the CPU a weight becomes a view of a memory-mapped file, which the system may drop from memory and read again. On an
accelerator it moves to host memory. In both cases the parameter object stays the same, so optimizers and other
references hold, and its elements can be read at any time.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import Parameter

from lightning_freeze.cache.checks.eligibility import Hook
from lightning_freeze.cache.prefix.block_signature import BlockSignature
from lightning_freeze.cache.prefix.entries import PrefixEntries
from lightning_freeze.cache.store.network_folder import file_system

#: Training batches in a row that must not need the weights. Doubled each time that they were needed again.
_FIRST_WAIT = 2
#: Weights begin at multiples of a page.
_PAGE = mmap.PAGESIZE
#: Smaller weights stay where they are.
_LEAST_BYTES = 4096
_IN_MEMORY = frozenset({"tmpfs", "ramfs", "hugetlbfs"})
_SHARED = "the weights of the skipped layers are shared with others, sharded or quantised"


def removable(root: nn.Module, skipped: Iterable[nn.Module], keeps_first: bool) -> list[Parameter]:
    """Return the parameters that nothing outside of some modules uses.

    Left out are tied weights with a use elsewhere, parameters that share their memory with another tensor, subclasses
    of ``Parameter`` (quantised weights, shards), and small ones.

    Args:
        root: The module as a whole.
        skipped: The modules that are skipped.
        keeps_first: Whether to leave out the first parameter of each module around them, of which code asks the device.
    """
    roots = list(skipped)
    inside = {id(m) for each in roots for m in each.modules()}
    around = [m for m in root.modules() if id(m) not in inside]
    kept = {id(p) for m in around for p in m._parameters.values() if p is not None}
    if keeps_first:
        kept |= {id(p) for m in around if (p := next(m.parameters(), None)) is not None}
    places: dict[int, set[int]] = {}
    for tensor in (*root.parameters(), *root.buffers()):
        with suppress(Exception):  # a tensor without memory of its own
            places.setdefault(tensor.untyped_storage().data_ptr(), set()).add(id(tensor))
    own = dict.fromkeys(p for each in roots for p in each.parameters())
    return [p for p in own if id(p) not in kept and _is_plain(p) and len(places[_place(p)]) == 1]


def _is_plain(p: Parameter) -> bool:
    is_plain = type(p) is Parameter and type(p.data) is Tensor and p.layout == torch.strided and not p.is_meta
    if not is_plain or p.requires_grad or p.is_inference() or not p.is_contiguous():
        return False
    size = p.numel() * p.element_size()
    return size >= _LEAST_BYTES and p.untyped_storage().nbytes() == size


def _place(p: Tensor) -> int:
    return p.untyped_storage().data_ptr()


class MappedFile:
    """A file without a name that holds tensors; its pages need no memory while nothing reads them.

    Args:
        folder: A folder on a disk.
        tensors: The tensors, on the CPU.

    Attributes:
        views: The same tensors as views of the file.

    Raises:
        OSError: If the file cannot be written.
    """

    def __init__(self, folder: Path, tensors: Sequence[Tensor]) -> None:
        offsets, size = [], 0
        for tensor in tensors:
            offsets.append(size)
            size += -(-tensor.numel() * tensor.element_size() // _PAGE) * _PAGE
        with tempfile.TemporaryFile(dir=folder) as file:  # has no name, so nothing stays behind after a crash
            for tensor, offset in zip(tensors, offsets, strict=True):
                file.seek(offset)
                file.write(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
            file.truncate(size)
            file.flush()
            # Only pages that are written can be dropped.
            os.fsync(file.fileno())
            self._map = mmap.mmap(file.fileno(), size)
        self.views = [
            torch.frombuffer(self._map, dtype=torch.uint8, count=t.numel() * t.element_size(), offset=offset)
            .view(t.dtype)
            .view(t.shape)
            for t, offset in zip(tensors, offsets, strict=True)
        ]

    def drop_pages(self) -> None:
        """Take the pages that were read out of the memory of this process."""
        with suppress(AttributeError, OSError):  # where the system cannot do that, they stay
            self._map.madvise(mmap.MADV_DONTNEED)


class OffloadError(RuntimeError):
    """Weights that are needed could not come back to their device."""


class WeightOffload:
    """Offloads the weights of the frozen prefix of one tower while every pass skips it.

    Args:
        root: The module that is trained.
        entries: The hidden states of the tower, which know the prefix by its weights.
        folder: Where a file may be written on the CPU; ``None`` for the folder for temporary files.

    Attributes:
        problem: Why the weights stay where they are, empty if there is no problem.
        boundary: Number of blocks whose weights are away, 0 if none are.
    """

    def __init__(self, root: nn.Module, entries: PrefixEntries, folder: Path | None) -> None:
        self.problem = ""
        self.boundary = 0
        self._root = root
        self._entries = entries
        self._folder = folder
        self._wait = _FIRST_WAIT
        self._unused = 0
        self._away: list[tuple[Parameter, torch.device]] = []
        self._file: MappedFile | None = None
        self._handles: list[Any] = []
        self._hooked: set[int] = set()

    @property
    def bytes(self) -> int:
        """Bytes of the weights that are away."""
        return sum(p.numel() * p.element_size() for p, _ in self._away)

    def end_batch(self, boundary: int, skipped: Sequence[nn.Module]) -> None:
        """End a training batch that has skipped the prefix; offloads its weights if enough of them did.

        Args:
            boundary: Number of blocks in the prefix.
            skipped: The modules that are skipped.
        """
        if self._away:
            if self._file is not None:
                self._file.drop_pages()  # read when the identity of the prefix was checked
            return
        self._unused += 1
        if self._unused >= self._wait and not self.problem:
            try:
                self._leave(boundary, skipped)
            except Exception as error:  # an optimisation must not end the run
                self._stay(error)

    def restore(self, is_needed: bool = True) -> None:
        """Bring the weights back, bit for bit.

        Args:
            is_needed: Whether the layers run, rather than are saved or change; then more batches are waited for next
                time.

        Raises:
            OffloadError: If the device has no room for them. The rest stays readable, and the next call goes on.
        """
        self._unused = 0
        if not self._away:
            self._file = None
            return
        try:
            with self._entries.moving_weights(), torch.no_grad(), torch.inference_mode(False):
                while self._away:
                    parameter, device = self._away[-1]
                    parameter.data = parameter.data.to(device, copy=True)
                    self._away.pop()
        except Exception as error:
            raise OffloadError(self._failure_message()) from error
        self._file, self.boundary = None, 0
        if is_needed:
            self._wait *= 2

    def _failure_message(self) -> str:
        return (
            f"FrozenPrefixCache(offload=True): {self.bytes} bytes of weights of skipped layers are needed again and "
            f"cannot be brought back to {self._away[-1][1]}: expected as much free memory there as without offloading. "
            f"Use a smaller batch, a smaller max_accelerator_memory, or offload=False."
        )

    def close(self) -> None:
        """Bring the weights back, and remove all hooks.

        Raises:
            OffloadError: As in :meth:`restore`, after the hooks are removed.
        """
        for handle in self._handles:
            handle.remove()
        self._handles, self._hooked = [], set()
        self.restore()

    def _leave(self, boundary: int, skipped: Sequence[nn.Module]) -> None:
        first = next((p for each in skipped for p in each.parameters()), None)
        if first is None:
            return
        parameters = removable(self._root, skipped, keeps_first=first.device.type != "cpu")
        if not parameters:
            self.problem = _SHARED
            return
        self._watch(parameters, skipped, first.device)
        with self._entries.moving_weights(), torch.no_grad(), torch.inference_mode(False):
            hosts = self._host_copies(parameters)
            if hosts is None:
                return
            for parameter, host in zip(parameters, hosts, strict=True):
                self._exchange(parameter, host)
        if not self._away:
            self._file, self.problem = None, _SHARED
            return
        self.boundary = boundary
        return_free_memory()

    def _exchange(self, parameter: Parameter, host: Tensor) -> None:
        """Let a weight leave, unless another tensor uses its memory, which would not be freed nor follow the weight."""
        self._away.append((parameter, parameter.device))
        shape, dtype, place = parameter.shape, parameter.dtype, StorageWeakRef(parameter.untyped_storage())
        parameter.data = host
        storage = torch.UntypedStorage._new_with_weak_ptr(place.cdata)
        if storage is not None:
            parameter.data = torch.empty(0, dtype=dtype, device=storage.device).set_(storage, 0, shape, host.stride())
            self._away.pop()

    def _stay(self, error: Exception) -> None:
        """Bring weights back that have left before an error."""
        self.problem = f"the weights cannot leave ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        with suppress(OffloadError):  # the rest can be read, and comes back when it is needed
            self.restore(is_needed=False)

    def _host_copies(self, parameters: Sequence[Parameter]) -> list[Tensor] | None:
        if parameters[0].device.type != "cpu":
            return [p.data.to("cpu") for p in parameters]
        size = sum(p.numel() * p.element_size() + _PAGE for p in parameters)
        problem = f"neither cache_dir nor {tempfile.gettempdir()} is on a disk with room for the weights"
        for folder in (self._folder, Path(tempfile.gettempdir())):
            if folder is None or not _has_room(folder, size):
                continue
            try:
                self._file = MappedFile(folder, [p.data for p in parameters])
                return self._file.views
            except (OSError, ValueError) as error:  # such as a folder that can only be read
                problem = f"the weights cannot be written to {folder} ({error})"
        self.problem = problem
        return None

    def _watch(self, parameters: Sequence[Parameter], skipped: Sequence[nn.Module], device: torch.device) -> None:
        """Bring weights back before they are saved, or replaced by those of a checkpoint."""
        wanted = {id(p) for p in parameters}
        for module in (m for each in skipped for m in each.modules()):
            if id(module) in self._hooked or not any(id(p) in wanted for p in module._parameters.values()):
                continue
            self._hooked.add(id(module))
            hook = Hook(lambda *_: self.restore(is_needed=False))
            self._handles.append(module.register_state_dict_pre_hook(hook))
            self._handles.append(module.register_load_state_dict_pre_hook(hook))


def _has_room(folder: Path, size: int) -> bool:
    """Whether a folder is on a disk with room for a file of some size."""
    with suppress(OSError):
        is_on_disk = folder.is_dir() and file_system(folder) not in _IN_MEMORY
        return is_on_disk and shutil.disk_usage(folder).free > 2 * size
    return False


def return_free_memory() -> None:
    """Return memory that was freed to the system; glibc keeps it otherwise."""
    with suppress(OSError, AttributeError, TypeError):  # other systems have no such function
        ctypes.CDLL(None).malloc_trim(0)


def not_needed(blocks: Sequence[nn.Module], signatures: Sequence[BlockSignature]) -> list[nn.Module]:
    """Return skipped blocks, without those on an accelerator that compute something from shapes when skipped.

    Args:
        blocks: The skipped blocks.
        signatures: Their signatures; there may be more, of other blocks.
    """
    computes = [any(source in ("row", "all") for source, _ in signature.parts) for signature in signatures]
    on_cpu = [all(p.device.type == "cpu" for p in block.parameters()) for block in blocks]
    return [b for b, is_on_cpu, works in zip(blocks, on_cpu, computes, strict=False) if is_on_cpu or not works]
