"""Fits with ``FrozenPrefixCache(offload=True)``, and what is away in them."""

from __future__ import annotations

from typing import Any

import torch
from cached_fits import Examples, Plain, loader, make_cache, make_trainer
from encoders import bert
from lightning.pytorch import Callback, Trainer
from torch import nn
from torch.utils.data import DataLoader

from lightning_freeze import LayerFreezing


def data() -> DataLoader:
    return loader(Examples(24, 5, 5))


def away(cache: Any) -> int:
    """How many bytes of weights are away."""
    return sum(p.offload.bytes for p in cache._towers if p.offload is not None)


def cache_of(trainer: Trainer) -> Any:
    callbacks: Any = trainer.callbacks  # type: ignore[attr-defined]
    return next((c for c in callbacks if type(c).__name__ == "FrozenPrefixCache"), None)


class Watch(Callback):
    """Notes before each batch how many bytes are away; does something once, the first time that any are."""

    def __init__(self, act: Any = None) -> None:
        self.act, self.cache = act, None
        self.before: list[int] = []
        self.at_act = self.after_act = -1

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        self.cache = cache_of(trainer)
        if self.cache is None:
            return
        self.before.append(away(self.cache))
        if self.act is not None and self.before[-1] and self.at_act < 0:
            self.at_act = self.before[-1]
            self.act(trainer, pl_module)
            self.after_act = away(self.cache)


def fit(
    act: Any = None, module: Any = None, *callbacks: Callback, epochs: int = 4, **options: Any
) -> tuple[Any, Watch]:
    """Fit a module whose first half is frozen, or another one by callbacks; returns it and what was away."""
    watch = Watch(act)
    module = module or Plain(bert())
    callbacks = callbacks or (LayerFreezing("50%", verbose=False),)
    torch.manual_seed(11)
    trainer = make_trainer(*callbacks, make_cache(offload=True, **options), watch, epochs=epochs)
    trainer.fit(module, data())
    return module, watch


def prefix(module: Any) -> list[nn.Parameter]:
    """The frozen parameters of a BERT whose first half is frozen."""
    return [*module.model.bert.embeddings.parameters(), *module.model.bert.encoder.layer[:2].parameters()]
