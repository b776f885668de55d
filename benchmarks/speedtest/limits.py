"""The highest possible speed of each contender from counted operations: a forward pass is 1, a backward pass 2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.speedtest.subjects import Subject
from lightning_freeze import LayerStack


@dataclass(frozen=True)
class Work:
    """Operations of the forward pass of one batch.

    Attributes:
        flops: All of them.
        frozen: In each epoch the share of them that belongs to frozen layers.
        batches: Training batches in an epoch; there is one of validation.
    """

    flops: int
    frozen: Sequence[float]
    batches: int

    def of(self, contender: str) -> float:
        """Work of a run in forward passes of one batch."""
        n = self.batches
        if "warm" in contender or "ideal" in contender:
            return sum((3 * n + 1) * (1 - f) for f in self.frozen)
        if "cold" in contender:
            return self.of("warm") + self.frozen[0] * (n + 1)  # the first epoch fills
        shares = [0.0] * len(self.frozen) if "full" in contender else self.frozen
        return sum(n * (3 - 2 * f) + 1 for f in shares)

    def limit(self, contender: str) -> float:
        """How many times faster than full fine-tuning a contender can be."""
        return self.of("full") / self.of(contender)


def count(subject: Subject) -> Work:
    """Count the operations of one forward pass by layer, and follow what is frozen from epoch to epoch."""
    model = subject.build().eval()
    stack = LayerStack(model)
    counter = FlopCounterMode(display=False, depth=None)
    with counter, torch.no_grad():
        model(**subject.batch())
    root = type(model).__name__
    by_module = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    total = counter.get_total_flops()
    shares = {
        layer.name: sum(by_module.get(f"{root}.{prefix}", 0) for prefix in layer.prefixes) / total for layer in stack
    }
    if subject.freeze:
        names = [[layer.name for layer in stack.select(subject.freeze).layers]] * subject.epochs
    else:  # gradual unfreezing: the head trains first, and one layer more in each epoch
        names = [stack.names[: max(0, len(stack) - 1 - epoch)] for epoch in range(subject.epochs)]
    return Work(total, [sum(shares[name] for name in frozen) for frozen in names], subject.batches)
