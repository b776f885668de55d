"""Comparison of tensors, outputs and attributes of a pass that skips with those of one that does not."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_freeze.cache.identity.values import attributes_of, tensors_in, version_of
from lightning_freeze.cache.prefix.layout import Spans
from lightning_freeze.distributed.sharding import local

#: Longest container in an attribute that is searched for numbers.
_MOST = 64
#: Largest relative difference that another batch size, order or padding may cause, by dtype.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3}


def contains_nan(value: Any) -> bool:
    """Whether any tensor of an output contains NaN."""
    tensors = (local(t).detach() for t in tensors_in(value) if t.is_floating_point())
    # The sum first: it reads the tensor once, and needs no memory.
    return any(math.isnan(t.sum()) and bool(torch.isnan(t).any()) for t in tensors)


def stores_nan(module: nn.Module) -> bool:
    """Whether a module, or one in it, has an attribute that contains a tensor with NaN."""
    return any(contains_nan(value) for owner in module.modules() for value in attributes_of(owner).values())


class AttributeSnapshot:
    """The tensors and numbers in plain attributes of some modules, to notice later whether they have changed.

    Args:
        modules: The modules.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._modules = list(modules)
        self._tensors = self._read_tensors()
        self._numbers = self._read_numbers()

    def _read_tensors(self) -> dict[tuple[int, str, int], tuple[Tensor, int]]:
        return {
            (number, name, place): (tensor, version_of(tensor))
            for number, module in enumerate(self._modules)
            for name, value in attributes_of(module).items()
            if not callable(value)
            for place, tensor in enumerate(tensors_in(value))
        }

    def _read_numbers(self) -> dict[tuple[int, str, int], Any]:
        # Whole numbers are left out: they are counters rather than hidden states.
        return {
            (number, name, place): value
            for number, module in enumerate(self._modules)
            for name, attribute in attributes_of(module).items()
            for place, value in enumerate(_numbers_in(attribute))
        }

    def has_changed(self, by_content: bool) -> bool:
        """Whether any of them has changed.

        Args:
            by_content: Whether a new tensor with the same content counts as the same.
        """
        numbers, now = self._read_numbers(), self._read_tensors()
        if now.keys() != self._tensors.keys() or numbers.keys() != self._numbers.keys():
            return True
        # By value: each pass may assign the same number again.
        if any(not np.array_equal(value, self._numbers[place], equal_nan=True) for place, value in numbers.items()):
            return True
        for key, (tensor, version) in now.items():
            earlier, then = self._tensors[key]
            if tensor is earlier and version == then:
                continue
            if not by_content or tensor is earlier or difference(tensor, earlier) > 0:
                return True
        return False


def _numbers_in(value: Any, depth: int = 3) -> Iterable[Any]:
    """Yield every float and every float array in an attribute."""
    if isinstance(value, (float, np.floating)) or (isinstance(value, np.ndarray) and value.dtype.kind == "f"):
        yield np.array(value)  # a copy
    elif depth and isinstance(value, (list, tuple, deque, dict)) and len(value) <= _MOST:
        for part in value.values() if isinstance(value, dict) else value:
            yield from _numbers_in(part, depth - 1)


def difference(found: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference of two tensors over the norm of the second."""
    found, expected = local(found), local(expected)
    if found.shape != expected.shape:
        return float("inf")
    wide = torch.float64 if expected.dtype == torch.float64 else torch.float32
    found, expected = found.detach().to(expected.device, wide), expected.detach().to(wide)
    agree = torch.equal(found, expected)
    # NaN and infinity in the same places come from the model itself.
    finite = torch.isfinite(expected)
    if agree or not bool((torch.isfinite(found) == finite).all()):
        return 0.0 if agree else float("inf")
    gap = torch.linalg.vector_norm((found - expected)[finite])
    return float(gap / torch.linalg.vector_norm(expected[finite]).clamp_min(1e-12))


def tolerance(*dtypes: torch.dtype) -> float:
    """Return the largest difference to expect between results in the coarsest of some dtypes."""
    return max(TOLERANCE.get(dtype, TOLERANCE[torch.float32]) for dtype in dtypes)


def tolerance_across_batches(hidden: Tensor, *dtypes: torch.dtype) -> float:
    """Return the largest difference to expect between hidden states of a sample that were computed in two batches.

    Under autocast they have the rounding of the lower precision, even if a last operation made them float32 again.

    Args:
        hidden: Hidden states of one of the batches.
        dtypes: Other dtypes that they pass through.
    """
    kind = hidden.device.type
    lower = (torch.get_autocast_dtype(kind),) if torch.is_autocast_enabled(kind) else ()
    return tolerance(hidden.dtype, *dtypes, *lower)


def without_padding(tensor: Tensor, spans: Spans | None, length: int) -> Tensor:
    """Return a tensor without the positions of padding, if it has positions.

    Args:
        tensor: A tensor that a module returned.
        spans: For each sample the first position that is not padding and the one after the last.
        length: Number of positions in the batch.
    """
    if spans is None or tensor.dim() < 2 or tensor.shape[:2] != (len(spans), length):
        return tensor
    return torch.cat([tensor[row, start:stop] for row, (start, stop) in enumerate(spans)])


def outputs_differ(found: Any, expected: Any, spans: Spans | None, length: int, limit: float) -> bool:
    """Whether two outputs of a module differ in any tensor outside of the positions of padding."""
    ours, theirs = list(tensors_in(found)), list(tensors_in(expected))
    if [t.shape for t in ours] != [t.shape for t in theirs]:
        return True
    return any(
        difference(without_padding(a, spans, length), without_padding(b, spans, length)) > limit
        for a, b in zip(ours, theirs, strict=True)
        if b.is_floating_point()
    )
