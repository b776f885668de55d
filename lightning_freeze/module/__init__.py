"""A generic LightningModule around any transformer encoder."""

from lightning_freeze.module.optim import linear_warmup_decay, split_decay
from lightning_freeze.module.pooling import PooledModel
from lightning_freeze.module.transformer import TransformerModule

__all__ = ["PooledModel", "TransformerModule", "linear_warmup_decay", "split_decay"]
