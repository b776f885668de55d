"""The layout of an optimizer's parameter groups, in a run and in a checkpoint, and the way from one to the other.

An optimizer's state in a checkpoint goes by position, so it fits only the layout that it was saved in: the user's own,
or that of the groups split per layer. A checkpoint of a run without layer-wise rates is in the user's layout; it is
rearranged, so that every parameter gets its own state.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch.optim import Optimizer

from lightning_freeze.errors import ConfigurationError

Layout = list[int]
"""Number of parameters in each group."""


def layout(groups: Iterable[Mapping[str, Any]]) -> Layout:
    """The layout of parameter groups, of an optimizer or of its ``state_dict``."""
    return [len(group["params"]) for group in groups]


def rearrange(
    state: Mapping[str, Any], positions: Sequence[Sequence[int]], origin: Sequence[int], names: Sequence[str]
) -> dict[str, Any]:
    """An optimizer's ``state_dict`` with its parameters in other groups.

    Args:
        state: The ``state_dict`` in the old layout.
        positions: Of each new group, the positions of its parameters among all parameters of the old layout.
        origin: Of each new group, the index of the old group whose hyper-parameters it takes over.
        names: Of each new group, its name.

    Returns:
        A ``state_dict`` for an optimizer in the new layout. The tensors are the same ones, not copies.
    """
    old = state["param_groups"]
    keys = [key for key in ("params", "param_names") if all(key in group for group in old)]
    flat = {key: [item for group in old for item in group[key]] for key in keys}
    groups = [
        {**old[index], "name": name, **{key: [flat[key][i] for i in places] for key in keys}}
        for places, index, name in zip(positions, origin, names, strict=True)
    ]
    return {**state, "param_groups": groups}


def check_layout(states: Sequence[Mapping[str, Any]], optimizers: Sequence[Optimizer]) -> None:
    """Refuse to resume optimizers whose parameter groups are not those of the checkpoint.

    Args:
        states: The ``state_dict`` of each optimizer in the checkpoint; empty if there is none.
        optimizers: The optimizers of this run.

    Raises:
        ConfigurationError: If the number of parameters differs in any group.
    """
    saved = [layout(state["param_groups"]) for state in states]
    now = [layout(optimizer.param_groups) for optimizer in optimizers]
    if states and saved != now:
        raise ConfigurationError(
            f"The optimizers in the checkpoint hold parameter groups of {_sizes(saved)} parameters, those of this "
            f"run {_sizes(now)}: it was saved with other callbacks (DiscriminativeLR, GradualUnfreezing and "
            f"PhasedFineTuning make one group for each layer) or another optimizer. Resume with those of the run "
            f"that saved it, or begin a new run from its weights alone."
        )


def _sizes(layouts: Sequence[Layout]) -> str:
    return " and ".join("+".join(map(str, groups)) for groups in layouts)
