"""The most memory that a part of a run takes."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Literal

import torch

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """Measures from :meth:`begin` to :meth:`end`.

    On CUDA it is what tensors took at most. Otherwise it is the resident memory of the process, libraries included.
    Where the system cannot reset its peak (all but Linux), memory from before counts too.
    """

    def __init__(self) -> None:
        self.peak: int | None = None
        self.of: Literal["accelerator", "process"] = "process"
        self._device = torch.device("cpu")

    def begin(self, device: torch.device) -> None:
        """Forget the peak so far.

        Args:
            device: Where the run computes.
        """
        self._device = device
        if device.type == "cuda":
            self.of = "accelerator"
            torch.cuda.reset_peak_memory_stats(device)
            return
        with suppress(OSError):  # not on Linux, or a container that does not allow it
            _RESET.write_text("5", encoding="ascii")

    def end(self) -> None:
        """Read the peak."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            self.peak = torch.cuda.max_memory_allocated(self._device)
        else:
            self.peak = _resident_peak()


def _resident_peak() -> int | None:
    with suppress(OSError):
        for line in _STATUS.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
