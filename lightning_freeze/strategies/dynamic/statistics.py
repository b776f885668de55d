"""What a policy knows of a run: one number for each layer, measured in the turns that have ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Statistics:
    """The measurements that a policy chooses from; the same on all ranks, and kept in checkpoints.

    Attributes:
        trained: The layers that the policy chose for the turn that has ended; none before the first turn.
        latest: For each layer that has been measured, the value of the last turn in which it was; 0 for a layer that
            has had no gradient, such as one that another callback freezes. The size of an update is measured in steps
            that change weights only, not at a rate of 0 or where a loss scaler skips a step.
        previous: For each layer that has been measured twice, the value before that.
    """

    trained: Sequence[str] = ()
    latest: Mapping[str, float] = field(default_factory=dict)
    previous: Mapping[str, float] = field(default_factory=dict)

    def after(self, trained: Sequence[str], values: Mapping[str, float]) -> Statistics:
        """The statistics after one more turn.

        Args:
            trained: The layers that the policy had chosen for it.
            values: What was measured in it, by layer.
        """
        replaced = {name: self.latest[name] for name in values if name in self.latest}
        return Statistics(tuple(trained), {**self.latest, **values}, {**self.previous, **replaced})


NOTHING_MEASURED = Statistics()
"""The statistics at the start of a run."""
