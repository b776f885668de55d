"""Counts the cost of operations: floating point operations if they dominate, bytes moved if memory does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

#: Floating point operations in the time in which a device moves one byte to or from its memory. On the CPU this is what
#: fits the steps in ``benchmarks/plan_accuracy.py`` best; for accelerators it follows from data sheets.
_FLOPS_PER_BYTE = {"cpu": 4, "cuda": 100}
#: The same for optimizers. On the CPU they allocate temporary tensors as large as all parameters, and the system clears
#: such memory page by page: measured 6 to 11 for AdamW over 0.4 to 1.3 GB of parameters, and less where they are small.
_UPDATE_FLOPS_PER_BYTE = {"cpu": 10, "cuda": 100}


@dataclass(frozen=True)
class Work:
    """The cost of some operations.

    Attributes:
        flops: Floating point operations of matrix products, convolutions and attention.
        moved: Bytes that all other operations read and write.
    """

    flops: int = 0
    moved: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.moved + other.moved)

    def __sub__(self, other: Work) -> Work:
        return Work(self.flops - other.flops, self.moved - other.moved)

    def time_on(self, device: str, is_update: bool = False) -> float:
        """How long it takes, in units of one floating point operation.

        Args:
            device: The type of the device, such as ``"cpu"``.
            is_update: Whether it is the work of optimizers.
        """
        costs = _UPDATE_FLOPS_PER_BYTE if is_update else _FLOPS_PER_BYTE
        return self.flops + costs.get(device, costs["cuda"]) * self.moved


class OperationCounter(TorchDispatchMode):
    """Adds up the cost of all operations that run within it; fake tensors count like real ones.

    Attributes:
        work: The cost so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.work = Work()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.work += Work(flops=int(count(*args, **kwargs, out_val=output)))
        elif not func.is_view:
            self.work += Work(moved=_bytes((args, kwargs)) + _bytes(output))
        return output


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, Mapping):
        return sum(_bytes(each) for each in value.values())
    if isinstance(value, Iterable) and not isinstance(value, str):
        return sum(_bytes(each) for each in value)
    return 0
