"""What the strategy that wraps the model needs when the set of trainable parameters changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch.nn.parallel import DistributedDataParallel

from lightning_freeze.distributed.sharding import renew, reshard
from lightning_freeze.namespaces import either

_LISTENERS: WeakKeyDictionary[LightningModule, list[Callable[[], None]]] = WeakKeyDictionary()


def call_before_change(module: LightningModule, listener: Callable[[], None]) -> Callable[[], None]:
    """Have a function called whenever weights or ``requires_grad`` are about to change; returns a function to stop it.

    Args:
        module: The module that is trained.
        listener: The function.
    """
    listeners = _LISTENERS.setdefault(module, [])
    listeners.append(listener)

    def stop() -> None:
        if listener in listeners:
            listeners.remove(listener)

    return stop


def before_change(module: LightningModule) -> None:
    """Bring the module into the state in which gradients, weights and ``requires_grad`` may be changed."""
    for listener in _LISTENERS.get(module, ()):
        listener()
    reshard(module)


def resynchronise(trainer: Trainer, module: LightningModule) -> None:
    """Inform the strategy that other parameters train from now on; call it on all ranks, before a forward pass.

    ``requires_grad`` must have its values outside of ``toggle_optimizer``.

    ``DistributedDataParallel`` registers the parameters that require grad when it wraps the model. Those unfrozen
    later would never be synchronised between ranks, without an error, so the model is wrapped again. Modules that
    ``fully_shard`` has sharded follow ``requires_grad`` by themselves, but for one thing.
    """
    strategy = trainer.strategy
    if isinstance(strategy, either(DDPStrategy)) and isinstance(strategy.model, DistributedDataParallel):
        strategy.model = module
        with _parameters_are_in_sync(strategy):
            strategy.configure_ddp()
    else:
        renew(module)


@contextmanager
def _parameters_are_in_sync(strategy: DDPStrategy) -> Iterator[None]:
    """Have ``DistributedDataParallel`` send no parameters when it wraps the model.

    Otherwise it sends all of them, and the buffers, from the first rank to the others. The ranks have had the same
    parameters since the first wrap: they apply the same gradients, and load the same checkpoint. Buffers are sent
    before each forward pass, unless the user has turned that off.
    """
    # Private; no public name changes the arguments of a strategy that exists.
    arguments = strategy._ddp_kwargs
    before = dict(arguments)
    arguments["init_sync"] = False
    try:
        yield
    finally:
        arguments.clear()
        arguments.update(before)
