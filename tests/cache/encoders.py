"""Small encoders, changes of a module in the middle of a fit, and the comparison of fits with and without the cache."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import torch
import transformers as tf
from cached_fits import Examples, assert_same, both, loader, make_cache
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers.modeling_outputs import SequenceClassifierOutput

from lightning_freeze import LayerFreezing
from lightning_freeze.callbacks.frozen_prefix_cache import FrozenPrefixCache

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 100,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def bert(kind: Any = tf.BertForSequenceClassification, **settings: Any) -> Any:
    torch.manual_seed(0)
    return kind(tf.BertConfig(**{**SIZES, **settings}))


def frozen(layers: str = "50%") -> LayerFreezing:
    return LayerFreezing(layers, verbose=False)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(32)
        self.linear = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.linear(self.norm(x)))


class Encoder(nn.Module):
    """Embeddings and four blocks."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embeddings = nn.Embedding(100, 32)
        self.layers = nn.ModuleList(blocks or [Block() for _ in range(4)])

    def run(self, x: Tensor) -> list[Tensor]:
        """What comes into the first block, and what each block makes of it."""
        states = [x]
        for layer in self.layers:
            states.append(layer(states[-1]))
        return states

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        return self.run(self.embeddings(input_ids))[-1]


def same_length(seed: int = 3) -> DataLoader:
    """Batches without padding."""
    return loader(Examples(12, 5, 5, seed=seed))


def classified(logits: Tensor, labels: Tensor, other: Tensor | float = 0.0) -> SequenceClassifierOutput:
    return SequenceClassifierOutput(loss=nn.functional.cross_entropy(logits, labels) + other, logits=logits)


class Classifier(nn.Module):
    """A head on what an encoder returns for the first position, or on the mean of all, padding included."""

    def __init__(self, encoder: nn.Module, mean: bool = False) -> None:
        super().__init__()
        self.encoder = encoder
        self.classifier = nn.Linear(32, 2)
        self.mean = mean

    def encode(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        return self.encoder(input_ids, attention_mask=attention_mask)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> SequenceClassifierOutput:
        hidden = self.encode(input_ids, attention_mask)
        hidden = hidden if isinstance(hidden, Tensor) else hidden[0]
        return classified(self.classifier(hidden.mean(1) if self.mean else hidden[:, 0]), labels)


class Whole(LightningModule):
    """A LightningModule that holds embeddings and blocks itself."""

    def __init__(self) -> None:
        super().__init__()
        encoder = Encoder()
        self.embeddings, self.layers, self.classifier = encoder.embeddings, encoder.layers, nn.Linear(32, 2)

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden = self.embeddings(input_ids)
        for layer in self.layers:
            hidden = layer(hidden)
        return self.classifier(hidden[:, 0])  # type: ignore[no-any-return]

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss: Tensor = classified(self(batch["input_ids"]), batch["labels"]).loss
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1)


class AfterStep(Callback):
    """Changes the module once, after a step of the training."""

    def __init__(self, step: int, change: Callable[[Any], None]) -> None:
        self.step = step
        self.change = change

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if trainer.global_step == self.step:
            self.change(pl_module)


class EachEpoch(Callback):
    """Tells the module which epoch it is."""

    def __init__(self, change: Callable[[Any, int], None]) -> None:
        self.change = change

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.change(pl_module, trainer.current_epoch)


def check_equal(
    module: LightningModule,
    *callbacks: Callback,
    reason: str | None = None,
    warns: bool = True,
    exact: bool = True,
    **options: Any,
) -> FrozenPrefixCache:
    """The fit equals the one without the cache, and says once why it is switched off, if it is.

    Args:
        module: What is fitted.
        *callbacks: Of both fits.
        reason: What the reason for switching off must match, ``None`` if it must stay on.
        warns: Whether a reason must come with a warning.
        exact: Whether the fits must agree bit for bit. If batches are composed differently, matrix kernels may round
            the same sample differently in another batch; which ones do depends on the processor.
        **options: As for :func:`both`.
    """
    cache = options.pop("cache", None) or make_cache()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        plain, cached, _ = both(module, *callbacks, cache=cache, **options)
    assert_same(plain, cached, exact)
    ours = [str(w.message) for w in caught if "FrozenPrefixCache" in str(w.message)]
    assert len(ours) == (reason is not None and warns), ours
    if reason is None:
        assert not cache.reasons
    else:
        assert any(re.search(reason, text) for text in cache.reasons.values()), cache.reasons
    return cache
