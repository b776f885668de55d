"""From a checkpoint that leaves weights out to a whole one."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_freeze.checkpoints.fingerprint import fingerprint, has_plain_content
from lightning_freeze.checkpoints.omitted_weight import OmittedWeight
from lightning_freeze.errors import ConfigurationError

_SHOWN = 3


def omitted_weights(checkpoint: Mapping[str, Any]) -> dict[str, OmittedWeight]:
    """What a checkpoint leaves out, by name; empty if it is whole.

    Args:
        checkpoint: Its content.
    """
    states = [state for state in checkpoint.values() if isinstance(state, dict)]
    return {name: value for state in states for name, value in state.items() if isinstance(value, OmittedWeight)}


def merged(checkpoint: Mapping[str, Any], weights: Iterable[tuple[str, Tensor]], source: str) -> dict[str, Any]:
    """The content of a checkpoint with weights in place of what it leaves out.

    Weights are recognised by their content, so their names do not matter.

    Args:
        checkpoint: The content of a checkpoint.
        weights: Names and tensors of the base weights.
        source: What they are from, for the message.

    Raises:
        ConfigurationError: If weights that are left out are not among them.
    """
    omitted = omitted_weights(checkpoint)
    found = _find(omitted, weights)
    missing = {name: weight for name, weight in omitted.items() if id(weight) not in found}
    if missing:
        layers = list(dict.fromkeys(weight.layer for weight in missing.values()))
        shown = ", ".join(layers[:_SHOWN]) + (f" and {len(layers) - _SHOWN} more" if len(layers) > _SHOWN else "")
        raise ConfigurationError(
            f"{len(missing)} of the {len(omitted)} weights that the checkpoint leaves out are not in {source} (layers: "
            f"{shown}; such as {next(iter(missing))}): expected the base weights of the run that saved it."
        )
    whole = dict(checkpoint)
    for key, state in checkpoint.items():
        if isinstance(state, dict) and any(isinstance(value, OmittedWeight) for value in state.values()):
            whole[key] = filled = copy.copy(state)
            filled.update({n: found[id(v)] for n, v in state.items() if isinstance(v, OmittedWeight)})
    return whole


def _find(omitted: Mapping[str, OmittedWeight], weights: Iterable[tuple[str, Tensor]]) -> dict[int, Tensor]:
    """Return the content of each weight by identity: shared weights are one object in the checkpoint."""
    wanted: dict[torch.Size, dict[int, OmittedWeight]] = {}
    for weight in omitted.values():
        wanted.setdefault(weight.shape, {})[id(weight)] = weight
    found: dict[int, Tensor] = {}
    for _, tensor in weights:
        same_shape = wanted.get(tensor.shape, {})
        if not same_shape or not has_plain_content(tensor):
            continue
        is_used = False
        for dtype in {weight.dtype for weight in same_shape.values()}:
            rounded = tensor.detach().to(dtype)
            digest = fingerprint(rounded)
            for key in [key for key, weight in same_shape.items() if weight.digest == digest]:
                # A storage of its own, unless the tensor has one: torch.save writes whole storages.
                is_view = rounded.untyped_storage().nbytes() != rounded.nbytes
                found[key] = rounded.clone() if is_used or is_view else rounded
                is_used = True
                del same_shape[key]
    return found
