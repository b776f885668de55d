"""Leaves unchanged frozen weights out of the checkpoints that a trainer saves."""

from __future__ import annotations

import copy
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import Strategy

from lightning_freeze.checkpoints.base_weights import BaseWeights, known_base_weights
from lightning_freeze.checkpoints.omitted_weight import OmittedWeight
from lightning_freeze.namespaces import either

#: The entries of a checkpoint that hold all weights; the second is that of Lightning's WeightAveraging.
_STATES = ("state_dict", "current_model_state")


def leave_out(checkpoint: dict[str, Any], base: BaseWeights) -> None:
    """Replace weights that are left out, and unchanged since the module was built, by their fingerprints.

    Everything that something has changed stays, whatever it was: a callback, averaging, statistics of BatchNorm.

    Args:
        checkpoint: The content of a checkpoint; its entries are replaced, not changed.
        base: What is known of the weights as built.
    """
    states = {key: checkpoint[key] for key in _STATES if isinstance(checkpoint.get(key), dict)}
    omitted: dict[str, OmittedWeight] = {}
    shared: dict[tuple[int, str], OmittedWeight] = {}  # tied weights are one object, as they are one storage
    for name, layer in base.layers.items():
        values = [state[name] for state in states.values() if name in state]
        found = [base.unchanged(name, value) for value in values]
        # In all of them or in none: what is loaded last takes the weight from the module that the first has filled.
        if values and (digest := found[0]) is not None and len(set(found)) == 1:
            place = (values[0].data_ptr(), digest)
            omitted[name] = shared.setdefault(place, OmittedWeight.of(values[0], digest, layer))
    for key, state in states.items():
        checkpoint[key] = small = copy.copy(state)  # keeps the versions of the modules, an attribute of state dicts
        small.update({name: weight for name, weight in omitted.items() if name in state})


def leave_out_when_saving(trainer: Trainer) -> None:
    """Leave weights out of every checkpoint of a trainer, those that hold weights only and those after the fit too.

    No callback hook is called for checkpoints of weights only, so the strategy's method is wrapped, which writes all.

    Args:
        trainer: The running trainer.
    """
    trainer.strategy.save_checkpoint = _LeavesOut(trainer)  # type: ignore[method-assign]


class _LeavesOut:
    """Takes the place of a strategy's ``save_checkpoint``; a class, because trainers are pickled to start processes."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def __call__(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        trainer, strategy = self._trainer, self._trainer.strategy
        # Asked for at each save: the trainer may have other callbacks by now, or another module with other weights.
        base = known_base_weights(trainer.lightning_module) if _is_asked_for(trainer) else None
        if base is not None and trainer.is_global_zero:  # the other ranks write nothing
            leave_out(checkpoint, base)
        type(strategy).save_checkpoint(strategy, checkpoint, filepath, storage_options=storage_options)


def _is_asked_for(trainer: Trainer) -> bool:
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return any(not getattr(callback, "save_frozen", True) for callback in callbacks)


def saves_whole_weights(strategy: Strategy) -> bool:
    """Whether a strategy writes the weights in a form of its own, from which none can be left out."""
    parents = either(Strategy)  # type: ignore[type-abstract]
    return any(
        all(getattr(type(strategy), name) is not getattr(parent, name) for parent in parents)
        for name in ("save_checkpoint", "lightning_module_state_dict")
    )
