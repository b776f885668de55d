"""Watches one fit from outside: losses, what trains, the rates that optimizers really step with, the final state."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback
from torch import Tensor
from torch.optim import Optimizer

#: Told of each optimizer in the midst of its step, once its closure has run.
_LISTENERS: list[Callable[[Optimizer], None]] = []
_STEPPING: set[int] = set()


class Probe(Callback):
    """Records a fit. It has to be the last of the callbacks, so that it sees what the others have done.

    A checkpoint of Lightning holds neither random state nor the position of a stream of data. For a resumed run to
    equal a straight one, the probe seeds all generators before each batch, and can replay the batches of another run.

    Args:
        folder: Where to save a checkpoint at the end of each epoch.
        replay: Batches for ``training_step``, by number, in the place of the project's own.

    Attributes:
        losses: The loss of each batch.
        trains: For each batch the names of the parameters that require grad.
        epochs: The epoch of each batch.
        noisy: For each batch the names of the modules in train mode.
        rates: For each optimizer step the rate of each parameter, read inside the step.
        batches: The batches of the first epoch, by number.
        states: The module's parameters and buffers at the start of each epoch, and at the end.
        optimizers: The optimizers' states at the end.
        callbacks: All callbacks of the trainer; some projects train with copies of those they are given.
    """

    def __init__(self, folder: Path, replay: dict[int, Any] | None = None) -> None:
        self.folder = folder
        self.replay = replay
        self.batches: dict[int, Any] = {}
        self.losses: list[float] = []
        self.trains: list[frozenset[str]] = []
        self.epochs: list[int] = []
        self.noisy: list[frozenset[str]] = []
        self.rates: list[dict[str, float]] = []
        self.states: list[dict[str, Tensor]] = []
        self.optimizers: list[Any] = []
        self.callbacks: list[Any] = []
        self.module: Any = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Probe:
        return self

    def __getstate__(self) -> dict[str, Any]:
        # Some projects save the callbacks that they were given.
        return {}

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        spy_on_steps()
        self.module = pl_module

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        _LISTENERS[:] = [self._note_rates]
        if self.replay is not None:
            step, batches = pl_module.training_step, self.replay

            @wraps(step)
            def training_step(batch: Any, batch_idx: int, *args: Any) -> Any:
                return step(deepcopy(batches[batch_idx]), batch_idx, *args)

            pl_module.training_step = training_step

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.states.append(state_of(pl_module))

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        seed(1000 * trainer.current_epoch + batch_idx)
        if batch_idx not in self.batches:
            self.batches[batch_idx] = deepcopy(batch)
        self.epochs.append(trainer.current_epoch)
        self.trains.append(frozenset(n for n, p in pl_module.named_parameters() if p.requires_grad))
        self.noisy.append(frozenset(n for n, m in pl_module.named_modules() if m.training))

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        self.losses.append(loss.item())

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        trainer.save_checkpoint(self.folder / f"epoch={trainer.current_epoch}.ckpt")

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        _LISTENERS.clear()
        self.callbacks = list(trainer.callbacks)
        vars(pl_module).pop("training_step", None)
        self.states.append(state_of(pl_module))
        self.optimizers = [tensors_in(optimizer.state_dict()) for optimizer in trainer.optimizers]

    def callback(self, cls: type) -> Any:
        """The trainer's callback of a class."""
        return next(callback for callback in self.callbacks if isinstance(callback, cls))

    def _note_rates(self, optimizer: Optimizer) -> None:
        names = {parameter: name for name, parameter in self.module.named_parameters()}
        groups = optimizer.param_groups
        self.rates.append({names[p]: float(g["lr"]) for g in groups for p in g["params"] if p in names})


def seed(number: int) -> None:
    """Seed all generators that a project may draw from."""
    torch.manual_seed(number)
    np.random.seed(number)
    random.seed(number)


def state_of(module: Any) -> dict[str, Tensor]:
    """A copy of all parameters and buffers, those that are not saved included."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in tensors}


def tensors_in(value: Any) -> list[Tensor]:
    """Copies of all tensors in nested containers, in order."""
    if isinstance(value, Tensor):
        return [value.detach().clone()]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for part in parts for tensor in tensors_in(part)]


def spy_on_steps() -> None:
    """Have every optimizer class report from inside its ``step``, behind the hooks that run around it."""
    classes = list(_subclasses(Optimizer))
    for cls in classes:
        step = vars(cls).get("step")
        if step is None or hasattr(step, "spied"):
            continue
        is_hooked = hasattr(step, "hooked")
        reporting = _reporting(step.__wrapped__ if is_hooked else step)
        # Torch runs the hooks in a wrapper, which it puts around a class's own step when the first object is made.
        cls.step = Optimizer.profile_hook_step(reporting) if is_hooked else reporting  # type: ignore[attr-defined]
        cls.step.spied = True  # type: ignore[attr-defined]
        if is_hooked:
            cls.step.hooked = True  # type: ignore[attr-defined]


def _reporting(step: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(step)
    def reporting(self: Optimizer, closure: Callable[[], Any] | None = None, **options: Any) -> Any:
        with _outermost(self) as is_outermost:
            if not is_outermost:
                return step(self, closure, **options)
            if closure is None:
                _report(self)
                return step(self, None, **options)

            def observed() -> Any:
                loss = closure()
                _report(self)
                return loss

            return step(self, observed, **options)

    return reporting


@contextmanager
def _outermost(optimizer: Optimizer) -> Iterator[bool]:
    is_outermost = id(optimizer) not in _STEPPING
    _STEPPING.add(id(optimizer))
    try:
        yield is_outermost
    finally:
        if is_outermost:
            _STEPPING.discard(id(optimizer))


def _report(optimizer: Optimizer) -> None:
    for listener in _LISTENERS:
        listener(optimizer)


def _subclasses(cls: type) -> Iterator[type]:
    for child in cls.__subclasses__():
        yield child
        yield from _subclasses(child)
