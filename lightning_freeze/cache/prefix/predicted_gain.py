"""What the cache is worth: predicted from floating point operations, and told in one line."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

#: The backward pass of a layer that trains costs about twice its forward pass.
STEP = 3


@dataclass
class Work:
    """Floating point operations of the forward pass of one batch.

    Attributes:
        prefix: Those of the frozen layers that are skipped.
        rest: Those of everything above.
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
        after = STEP * self.rest + (reading * rate if math.isfinite(rate) else 0.0)
        return (self.prefix + STEP * self.rest) / after if after else math.inf


def flops(run: Callable[[], Any]) -> tuple[Any, int]:
    """Run something and count its floating point operations.

    Returns:
        What it returned, and the count.
    """
    with FlopCounterMode(display=False) as counter:
        result = run()
    return result, counter.get_total_flops()


class OutsideWork:
    """Counts the operations of linear layers outside of some modules while it is open, for task heads.

    Args:
        module: The whole module.
        inside: Modules whose operations are known otherwise.
    """

    def __init__(self, module: nn.Module, inside: Sequence[nn.Module]) -> None:
        known = {id(m) for root in inside for m in root.modules()}
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


def is_sharded(strategy: Any) -> bool:
    """Whether a strategy keeps parts of the weights on other devices, so that all ranks must run the same layers."""
    from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy

    return isinstance(strategy, (DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy))


def is_compiled(module: nn.Module, tower: nn.Module) -> bool:
    """Whether ``torch.compile`` has been applied to a tower, something in it or something around it."""
    if getattr(module, "_compiler_ctx", None):  # Lightning's own note that the LightningModule was compiled
        return True
    for candidate in module.modules():
        # By its name: importing torch._dynamo takes seconds, and whoever has compiled something has paid for them.
        compiled = candidate._compiled_call_impl is not None or type(candidate).__name__ == "OptimizedModule"
        if compiled and (any(m is tower for m in candidate.modules()) or any(m is candidate for m in tower.modules())):
            return True
    return False
