"""``torch.compile`` under a schedule: compiled graphs depend on what trains, so each phase compiles new ones.

Gradients are correct without further measures: dynamo guards on ``requires_grad`` and on the modes. But after eight
graphs of a function it stops compiling it and runs it uncompiled, with only a line in the log.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch._dynamo import OptimizedModule

# A block trains or not, and its input requires grad or not, so a single compiled block needs no more graphs than this.
_FEW = 3

_LIMITS = (("recompile_limit", "cache_size_limit"), ("accumulated_recompile_limit", "accumulated_cache_size_limit"))


def is_compiled(root: nn.Module) -> bool:
    """Whether a module, or any module in it, has been compiled.

    All three ways count: ``torch.compile(module)``, ``module.compile()``, and a compiled ``LightningModule`` that was
    given to the trainer.
    """
    return any(
        isinstance(module, OptimizedModule)
        or getattr(module, "_compiled_call_impl", None) is not None
        or getattr(module, "_compiler_ctx", None) is not None
        for module in root.modules()
    )


def raise_limits(phases: int) -> Callable[[], None]:
    """Raise the limits, so that each phase may compile as many graphs as the settings allow for a whole run.

    Args:
        phases: The number of phases.

    Returns:
        A function that restores the limits.
    """
    config = torch._dynamo.config
    # The names of the limits changed in torch 2.6.
    names = [next(name for name in both if hasattr(config, name)) for both in _LIMITS]
    before = {name: getattr(config, name) for name in names}
    for name, limit in before.items():
        setattr(config, name, limit * phases)

    def undo() -> None:
        for name, limit in before.items():
            setattr(config, name, limit)

    return undo


def graphs_so_far() -> int:
    """How many graphs ``torch.compile`` has made in this process."""
    # The documented statistics of dynamo; there is no public counter.
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


class GraphCount:
    """Counts the graphs that each phase of a run compiles."""

    def __init__(self) -> None:
        self._at_start = self._before = graphs_so_far()
        self._lines = 0

    def begin(self) -> None:
        """Start counting at the first batch of a phase."""
        self._before = graphs_so_far()

    def line(self) -> str:
        """The number of graphs that the first batch of a phase compiled, in one line; empty if there were none."""
        now = graphs_so_far()
        new = now - self._before
        if not new:
            return ""
        graphs = "graph" if new == 1 else "graphs"
        line = f"torch.compile made {new} new {graphs} for this phase, {now - self._at_start} in this run."
        self._lines += 1
        if self._lines == _FEW:
            line += " Compiling each block by itself (block.compile()) makes a few for the whole run."
        return line
