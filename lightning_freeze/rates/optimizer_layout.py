"""The layout of an optimizer's parameter groups, in a run and in a checkpoint, and the way from one to the other.

An optimizer's state in a checkpoint goes by position, so it fits only the layout that it was saved in: the user's own,
or that of the groups split per layer. A checkpoint of a run without layer-wise rates is in the user's layout; it is
rearranged, so that every parameter gets its own state.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

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
