"""The gain of the cache, predicted from floating point operations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.module_tracker import ModuleTracker

#: Cost of a training step of a layer in forward passes: the backward pass costs about two of them.
STEP_COST = 3


@dataclass
class Work:
    """Floating point operations of the forward pass of one batch.

    Attributes:
        prefix: Operations of the frozen layers that are skipped.
        rest: Operations of everything above.
    """

    prefix: float
    rest: float

    @property
    def share(self) -> float:
        """The skipped layers' share of the forward pass."""
        return self.prefix / (self.prefix + self.rest) if self.prefix else 0.0

    def speedup(self, reading: float = 0.0, rate: float = math.inf) -> float:
        """How many times faster a training step becomes.

        Args:
            reading: Seconds to read the hidden states of a batch.
            rate: Operations in a second, measured on the prefix.
        """
        after = STEP_COST * self.rest + (reading * rate if math.isfinite(rate) else 0.0)
        return (self.prefix + STEP_COST * self.rest) / after if after else math.inf


def count_flops(run: Callable[[], Any]) -> tuple[Any, int]:
    """Run a function and count its floating point operations.

    Args:
        run: The function.

    Returns:
        What it returned, and the count.
    """
    with _TotalFlops() as counter:
        result = run()
    return result, counter.get_total_flops()


class _TotalFlops(FlopCounterMode):
    """Counts for a whole run, without the count for each module.

    The hooks of the latter fail in inference mode on a parametrized weight, such as that of ``weight_norm``.
    """

    def __init__(self) -> None:
        super().__init__(display=False)
        self.mod_tracker = _OneModule()


class _OneModule(ModuleTracker):
    def __init__(self) -> None:
        self.parents = {"Global"}

    def __enter__(self) -> _OneModule:
        return self

    def __exit__(self, *args: object) -> None:
        pass


class HeadFlops:
    """Counts the operations of linear layers outside of the towers, as in task heads, until it is closed.

    Args:
        module: The whole module.
        towers: Modules whose operations are counted elsewhere.

    Attributes:
        flops: The operations counted so far.
    """

    def __init__(self, module: nn.Module, towers: Sequence[nn.Module]) -> None:
        known = {id(m) for root in towers for m in root.modules()}
        self.flops = 0
        linear = [m for m in module.modules() if isinstance(m, nn.Linear) and id(m) not in known]
        self._handles = [m.register_forward_hook(self._count) for m in linear]

    def _count(self, module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor) and isinstance(module, nn.Linear):
            self.flops += 2 * output.numel() * module.in_features

    def close(self) -> None:
        """Stop counting."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
