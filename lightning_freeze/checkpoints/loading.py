"""Takes weights that a checkpoint leaves out from the module that loads it, and refuses those of another one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.nn import Module

from lightning_freeze.checkpoints.base_weights import kept_weight, known_base_weights, note_reloaded, note_versions
from lightning_freeze.checkpoints.named_tensors import named_tensors
from lightning_freeze.checkpoints.omitted_weight import WAY_OUT, OmittedWeight
from lightning_freeze.errors import ConfigurationError

_SHOWN = 3


def filled(state: dict[str, Any], module: Module) -> dict[str, Any]:
    """A state dict with the weights of a module in place of those that were left out.

    ``load_state_dict`` does the same weight by weight. This says at once what differs.

    Args:
        state: The state dict of a checkpoint.
        module: The module that is going to load it.

    Returns:
        The state dict; names that the module does not have stay as they are.

    Raises:
        ConfigurationError: If the module was built with other base weights.
    """
    omitted = {name: value for name, value in state.items() if isinstance(value, OmittedWeight)}
    if not omitted:
        return state
    own = named_tensors(module)
    found: dict[str, Tensor] = {}
    differing: dict[str, OmittedWeight] = {}
    for name, weight in omitted.items():
        tensor = own.get(name)
        if tensor is not None and weight.is_content_of(tensor):
            found[name] = tensor.detach()
        elif tensor is not None and (kept := kept_weight(weight.digest, tensor)) is not None:
            found[name] = kept
        elif tensor is not None and tensor.dtype == weight.dtype:
            differing[name] = weight
    if differing:
        raise ConfigurationError(_refusal(differing, len(omitted), module))
    whole = copy.copy(state)  # keeps the versions of the modules, an attribute of state dicts
    whole.update(found)
    return whole


def fill_when_loading(trainer: Trainer, module: LightningModule) -> Callable[[], object]:
    """Fill in what a checkpoint leaves out, right before a trainer loads its weights into a module.

    Args:
        trainer: The running trainer, before it restores a checkpoint.
        module: The module.

    Returns:
        Undoes it.
    """
    strategy = trainer.strategy
    load = strategy.load_model_state_dict

    @wraps(load)
    def load_model_state_dict(checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        state = checkpoint.get("state_dict")
        if isinstance(state, dict):
            base = known_base_weights(module)
            if base is not None:
                own = module.state_dict()
                base.keep([n for n in base.layers if n in own and _overwrites(state.get(n), own[n])], module)
            checkpoint = {**checkpoint, "state_dict": filled(state, module)}
        note_versions(module)  # a later fit must not take what is loaded for what the module was built with
        load(checkpoint, strict=strict)
        if isinstance(state, dict):
            note_reloaded(module, [name for name, value in state.items() if isinstance(value, OmittedWeight)])

    strategy.load_model_state_dict = load_model_state_dict  # type: ignore[method-assign]
    return lambda: vars(strategy).pop("load_model_state_dict", None)


def _overwrites(value: object, own: Tensor) -> bool:
    return isinstance(value, Tensor) and value.data_ptr() != own.data_ptr()


def _refusal(differing: Mapping[str, OmittedWeight], count: int, module: Module) -> str:
    layers = list(dict.fromkeys(weight.layer for weight in differing.values()))
    shown = ", ".join(layers[:_SHOWN]) + (f" and {len(layers) - _SHOWN} more" if len(layers) > _SHOWN else "")
    return (
        f"The checkpoint leaves out {count} frozen weights, and {len(differing)} of them differ in this "
        f"{type(module).__name__} (layers: {shown}; such as {next(iter(differing))}): the base weights are others than "
        f"those of the run that saved it. Build the module with the same base weights (folder, revision, seed), and "
        f"anew if it has been trained or has loaded another checkpoint since. {WAY_OUT}"
    )
