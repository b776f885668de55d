"""How fast each contender could be at most, from counted operations: a forward pass is 1, a backward pass 2."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.speedtest.subjects import Subject
from lightning_freeze import LayerStack


@dataclass(frozen=True)
class Work:
    """Operations of the forward pass of one batch: all of it, and the frozen part's share."""

    flops: int
    frozen: float

    def of(self, contender: str, epochs: int, batches: int) -> float:
        """Work of a run in forward passes of one batch, one batch of validation in each epoch included."""
        f, n = self.frozen, epochs * batches
        frozen_pass = n * (3 - 2 * f) + epochs
        cached = n * 3 * (1 - f) + epochs * (1 - f)
        if "warm" in contender or "ideal" in contender:
            return cached
        if "cold" in contender:
            return cached + f * (batches + 1)  # the first epoch fills
        return n * 3 + epochs if "full" in contender else frozen_pass

    def limit(self, contender: str, epochs: int, batches: int) -> float:
        """How many times faster than full fine-tuning a contender can be."""
        return self.of("full", epochs, batches) / self.of(contender, epochs, batches)


def count(subject: Subject) -> Work:
    """Count the operations of one forward pass, by module."""
    model = subject.build().eval()
    selected = LayerStack(model).select(subject.freeze)
    frozen = {id(module) for module in selected.modules}
    leaves = {name for name, module in model.named_modules() if id(module) in frozen}
    tops = [name for name in leaves if not any(name.startswith(f"{other}.") for other in leaves if other)]
    counter = FlopCounterMode(display=False, depth=None)
    with counter, torch.no_grad():
        model(**subject.inputs(subject.batch_size))
    root = type(model).__name__
    by_module = counter.get_flop_counts()
    part = sum(sum(by_module.get(f"{root}.{name}", {}).values()) for name in tops)
    total = counter.get_total_flops()
    return Work(total, part / total)
