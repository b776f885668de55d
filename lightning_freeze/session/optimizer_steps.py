"""How many steps each of several optimizers has taken.

``Trainer.global_step`` adds up the steps of all optimizers. A warm-up counts only the steps of the optimizer that holds
the layer, however often the others step in the meantime.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from torch.nn import Parameter
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_freeze.optimizers.step_hooks import is_nested


class OptimizerSteps:
    """Counts the steps of each optimizer, and remembers the counts with which each phase began."""

    def __init__(self) -> None:
        self._taken: Counter[int] = Counter()  # by the index of the optimizer
        self._at_start: list[Counter[int]] = []
        self._counted: list[Optimizer] = []
        self._handles: list[RemovableHandle] = []

    def attach(self, optimizers: Sequence[Optimizer]) -> None:
        """Count the steps of these optimizers from now on, whether a step goes through Lightning or not.

        This is cheap where nothing has changed, so it can be called before every batch.
        """
        if [*map(id, self._counted)] == [*map(id, optimizers)]:
            return
        self.detach()
        self._counted = list(optimizers)
        self._handles = [
            optimizer.register_step_post_hook(lambda optimizer, *_, index=index: self._count(optimizer, index))
            for index, optimizer in enumerate(optimizers)
            if hasattr(optimizer, "register_step_post_hook")  # the optimizers of some engines have no hooks
        ]

    def detach(self) -> None:
        """Stop counting."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._counted = []

    def mark(self, phases: int) -> None:
        """Note the counts for phases that have begun, of which there are now ``phases``."""
        while len(self._at_start) < phases:
            self._at_start.append(Counter(self._taken))

    @property
    def total(self) -> int:
        """Steps that all optimizers have taken."""
        return self._taken.total()

    def since(self, optimizer: int, phase: int) -> int:
        """Steps that an optimizer, by its index, has taken since a phase began."""
        return self._taken[optimizer] - self._at_start[phase][optimizer]

    def state_dict(self) -> dict[str, Any]:
        """The counts as plain data."""
        return {"taken": _as_list(self._taken), "at_start": [_as_list(counts) for counts in self._at_start]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self._taken = Counter(dict(enumerate(state["taken"])))
        self._at_start = [Counter(dict(enumerate(counts))) for counts in state["at_start"]]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_handles": [], "_counted": []}

    def _count(self, optimizer: Optimizer, index: int) -> None:
        if not is_nested(optimizer):  # a class's step that calls its parent's runs the hooks of both
            self._taken[index] += 1


def _as_list(counts: Counter[int]) -> list[int]:
    return [counts[index] for index in range(max(counts, default=-1) + 1)]


def index_of_optimizer(optimizers: Sequence[Optimizer], parameter: Parameter) -> int:
    """Index of the first optimizer that holds a parameter; 0 if none does."""
    for index, optimizer in enumerate(optimizers):
        if any(parameter is held for group in optimizer.param_groups for held in group["params"]):
            return index
    return 0
