"""Follows the operations of the frozen layers, to find values that are computed across samples or from padding.

Comparing the results of one batch does not show a dependence that is rare, such as a scaler that takes the scale of a
window without any observation from the other samples. The intermediate results show it in every batch: that scale is
computed whether it is needed or not, and a flag such as ``missing.any()`` has no entry for each sample.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import cycle, islice
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_freeze.cache.identity.values import tensors_in
from lightning_freeze.distributed.sharding import is_tensor_of_ranks

#: Sizes of the groups. A prime that divides no other dimension tells the dimension of the samples apart.
_SIZES = (5, 7, 11, 13)
#: Elements that are read of one intermediate result.
_ELEMENTS = 2048
#: Relative difference of these that shows a dependence, by whether the dtype has half precision.
_LIMIT, _HALF_LIMIT = 1e-3, 5e-2
#: Code that decides for a batch as a whole, or groups tokens of several samples, and gives each sample the same result.
_HARMLESS_CODE = (
    "transformers.masking_utils",
    "transformers.modeling_attn_mask_utils",
    "transformers.modeling_utils",
    "transformers.integrations.",
)
#: Operations that compute each entry of a dimension from the others. Rare flags may give no sample another result.
_SCANS = frozenset({"cumsum", "cumprod", "logcumsumexp", "cummax", "cummin", "sort", "flip", "roll"})
#: Ways to read a tensor that the dispatcher does not see.
_READS = (Tensor.numpy, Tensor.tolist, Tensor.__array__)


class Positions(NamedTuple):
    """The positions of a sample in its batch.

    Attributes:
        length: Number of all positions.
        start: The first position that is not padding.
        stop: The position after the last that is not padding.
    """

    length: int
    start: int
    stop: int


#: One intermediate result: its operation, its code, and a summary for each dimension that may count the samples.
_Step = tuple[str, str, list[list[float]]]


def group_size(tensors: Sequence[Tensor], parameters: Sequence[Tensor]) -> int:
    """Return a number of samples that is not a multiple or divisor of another dimension, as far as possible.

    Args:
        tensors: The inputs; their first dimension counts the samples.
        parameters: The weights.
    """
    sizes = {n for t in tensors for n in t.shape[1:]} | {n for p in parameters for n in p.shape}
    return next((size for size in _SIZES if not any(n % size == 0 for n in sizes if n)), _SIZES[1])


def groups(count: int, row: int, size: int) -> tuple[list[int], list[int]]:
    """Return the samples of two groups that have one in common: the first of one group is the last of the other.

    Args:
        count: Number of samples in the batch, at least 2.
        row: The common sample.
        size: Number of samples in a group. Samples are repeated if there are not enough others.
    """
    others = [i for i in range(count) if i != row]
    first = [row, *islice(cycle(others), size - 1)]
    # The common sample among the second ones, so that these differ from the first ones even where there are few.
    second = [*islice(cycle([*others[::-1], row]), size - 1), row]
    for place in (0, -2):  # the neighbours of the sample, wrapping around, also in reverse order
        if second[place] in (first[1], first[-1]):
            second[place] = row
    return first, second


def find_dependence(
    run: Callable[[Any], Any], select: Callable[[Sequence[int]], Any], groups: tuple[Sequence[int], Sequence[int]]
) -> str | None:
    """Compute one sample among different others, and compare all intermediate results.

    Args:
        run: Computes the prefix for some arguments.
        select: Returns the arguments for some samples.
        groups: The samples, as :func:`groups` returns them.

    Returns:
        The operation that computes across samples, and where it is called; ``None`` if none does.
    """
    first, second = groups
    return _difference(run, [(select(first), len(first), 0), (select(second), len(second), len(second) - 1)])


def find_padding_use(run: Callable[[Any], Any], inputs: Sequence[Any], size: int, positions: Positions) -> str | None:
    """Compute one sample with different contents of its padding, and compare all intermediate results.

    Args:
        run: Computes the prefix for some arguments.
        inputs: The same samples twice, with different contents of their padding; the first sample is compared.
        size: Number of samples.
        positions: The positions of the first sample.

    Returns:
        The operation that uses padding, and where it is called; ``None`` if none does.
    """
    return _difference(run, [(each, size, 0) for each in inputs], positions)


def _difference(
    run: Callable[[Any], Any], passes: Sequence[tuple[Any, int, int]], positions: Positions | None = None
) -> str | None:
    traces = []
    for inputs, size, place in passes:
        trace = _Trace(inputs, size, place, positions)
        with trace, _Reads(trace):
            run(inputs)
        if trace.problem is not None:
            return trace.problem
        traces.append(trace.steps)
    return _compare(*traces)


def _compare(first: list[_Step], second: list[_Step]) -> str | None:
    for (name, where, one), (other_name, _, other) in zip(first, second, strict=False):
        if name != other_name or len(one) != len(other):
            return f"a branch {where}"
        if not any(map(_is_same, one, other)):
            return f"{name} {where}"
    return None if len(first) == len(second) else "a branch"


def _is_same(one: list[float], other: list[float]) -> bool:
    limit, scale, *values = one
    gap = max(abs(a - b) for a, b in zip(values, other[2:], strict=True))
    return gap <= limit * max(scale, other[1]) or values == other[2:] or any(v != v for v in (*values, gap))


class _Trace(TorchDispatchMode):
    """Records a summary of each result that depends on the samples.

    Args:
        inputs: The inputs of the samples.
        size: Number of samples.
        place: Which of them is compared.
        positions: Compare only what it has in positions that are not padding.
    """

    def __init__(self, inputs: Any, size: int, place: int, positions: Positions | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps: list[_Step] = []
        self.problem: str | None = None
        self._size = size
        self._place = place
        self._positions = positions
        # By storage, so that writing into a view counts for the whole; weak, so that no memory is held.
        self._dependent: dict[int, StorageWeakRef] = {}
        for tensor in tensors_in(inputs):
            if tensor.dim() and tensor.shape[0] == size:
                self._mark(tensor)

    def depends(self, tensor: Tensor) -> bool:
        """Whether a tensor was computed from the samples."""
        return tensor.untyped_storage()._cdata in self._dependent

    def _mark(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self._dependent[storage._cdata] = StorageWeakRef(storage)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(is_tensor_of_ranks(kind) for kind in types):
            return NotImplemented  # it runs as operations on this rank's part, which are recorded
        output = func(*args, **(kwargs or {}))
        if self.problem is None:
            try:
                self._record(func, (args, kwargs or {}), output)
            except (RuntimeError, NotImplementedError):  # nested or sparse tensors, which have no storage of their own
                self.note(str(func.overloadpacket).removeprefix("aten."))
        return output

    def _record(self, func: Any, inputs: Any, output: Any) -> None:
        name = str(func.overloadpacket).removeprefix("aten.")
        # A new tensor with the shape of another one does not depend on its values.
        if name.startswith("new_") or name.endswith("_like") or not any(map(self.depends, tensors_in(inputs))):
            return
        found = list(tensors_in(output))
        for tensor in found:
            self._mark(tensor)
        if func.namespace == "_c10d_functional" and name != "wait_tensor":
            return  # an exchange between ranks has begun; its result is read once it has been waited for
        if _is_harmless(frame := _caller()):
            return
        if name.rstrip("_") in _SCANS and self._scans_samples(name, *inputs):
            self.note(name)
            return
        # Internal operations return statistics, seeds and buffers after their result.
        for tensor in found[:1] if name.startswith("_") else found:
            if not tensor.numel() or tensor.dtype == torch.uint8:
                continue
            summaries = [_summary(self._without_padding(part)) for part in self._parts(tensor)]
            if not summaries:
                self.note(name)
                return
            self.steps.append((name, _where(frame), summaries))

    def _parts(self, tensor: Tensor) -> Iterator[Tensor]:
        """Yield what may be the part of the compared sample, for each dimension that may count the samples."""
        for dim, length in enumerate(tensor.shape):
            each, rest = divmod(length, self._size)
            if rest == 0 and each:
                yield tensor.narrow(dim, self._place * each, each)
                if each > 1:
                    index = [slice(None)] * dim + [slice(self._place, None, self._size)]
                    yield tensor[tuple(index)]

    def _scans_samples(self, name: str, args: Any, kwargs: Any) -> bool:
        shape, own = args[0].shape, args[2:3] if name == "roll" else args[1:2]
        found = kwargs.get("dim", own[0] if own else range(len(shape)) if name == "roll" else -1)
        dims = found if isinstance(found, Iterable) else [found]
        return any(shape[dim] % self._size == 0 for dim in dims if shape)

    def _without_padding(self, part: Tensor) -> Tensor:
        if self._positions is not None:
            length, start, stop = self._positions
            for dim in range(part.dim()):
                if part.shape[dim] == length:
                    part = part.narrow(dim, start, stop - start)
        return part

    def note(self, name: str) -> None:
        """Record the first operation that may mix samples."""
        self.problem = self.problem or f"{name} {_where(_caller())}"


class _Reads(TorchFunctionMode):
    """Notices when code takes what depends on the samples out of torch."""

    def __init__(self, trace: _Trace) -> None:
        super().__init__()
        self._trace = trace

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        reads = func in _READS and isinstance(args[0], Tensor) and self._trace.depends(args[0])
        if reads and not _is_harmless(_caller()):
            self._trace.note(f"Tensor.{func.__name__}")
        return func(*args, **(kwargs or {}))


def _summary(part: Tensor) -> list[float]:
    flat = part.detach().reshape(-1)
    flat = flat[:: max(1, flat.numel() // _ELEMENTS)]
    values = (flat.abs() if flat.is_complex() else flat).double()
    values = values.clamp(-1e30, 1e30)  # masks are filled with the lowest value, or with infinity
    size = values.abs()
    ramp = torch.linspace(0.5, 1.5, len(values), dtype=torch.float64, device=values.device)
    found = torch.stack([size.sum(), values.sum(), values @ ramp, size @ ramp.flip(0)]).tolist()
    return [_HALF_LIMIT if part.element_size() <= 2 and part.is_floating_point() else _LIMIT, *found]


def _caller() -> FrameType | None:
    """Return the frame of the model's code, outside of torch, in which the current operation is called."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name != __name__ and not name.startswith(("torch.", "einops.")) and name != "torch":
            return frame
        frame = frame.f_back
    return None


def _is_harmless(frame: FrameType | None) -> bool:
    while frame is not None and not frame.f_globals.get("__name__", "").startswith("lightning_freeze."):
        name = frame.f_globals.get("__name__", "")
        # The experts of transformers compute each token alone, those of one expert together.
        is_experts = type(frame.f_locals.get("self")).__name__.endswith("Experts")
        if name.startswith(_HARMLESS_CODE) or (is_experts and name.startswith("transformers.models.")):
            return True
        frame = frame.f_back
    return False


def _where(frame: FrameType | None) -> str:
    if frame is None:
        return "in code that is not in Python"
    owner = frame.f_locals.get("self")
    name = frame.f_code.co_name
    return f"in {type(owner).__name__}.{name}" if isinstance(owner, nn.Module) else f"in {name}"
