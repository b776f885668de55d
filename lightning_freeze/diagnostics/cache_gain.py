"""How much of a step's time a cache of the frozen prefix would save, estimated from the sizes of the layers."""

from __future__ import annotations

from typing import NamedTuple

from lightning_freeze.layers import LayerStack

#: Parameters in the frozen blocks below which reading hidden states takes too large a share of what it saves. The six
#: blocks of MiniLM have 11 million, BERT-base has 85 million.
FEWEST_PARAMETERS = 20_000_000

#: Epochs with the same frozen layers from which on the first one, which fills the cache, matters little.
FEWEST_EPOCHS = 3


class FrozenShare(NamedTuple):
    """The frozen first blocks of a model.

    Attributes:
        blocks: Number of them.
        parameters: Number of their parameters.
        share: Their share of the parameters of all blocks and heads.
    """

    blocks: int
    parameters: int
    share: float


def saving(share: float) -> float:
    """The share of a step's time that the cache saves, where backward already stops above the frozen prefix.

    The forward pass costs 1, the backward pass 2 for each layer that it runs through. A step costs 1 + 2(1 - share)
    without the cache and 3(1 - share) with it. That is more than half for a share above three quarters.

    Args:
        share: Share of the forward pass that the prefix takes.
    """
    return share / (3 - 2 * share)


def is_worth_a_cache(frozen: FrozenShare, epochs: float) -> bool:
    """Whether a cache would save more than half of a step's time, in a model and a run that are large enough.

    Args:
        frozen: The frozen prefix.
        epochs: Number of epochs for which it stays frozen.
    """
    is_large = frozen.parameters >= FEWEST_PARAMETERS and epochs >= FEWEST_EPOCHS
    return is_large and saving(frozen.share) > 0.5


def frozen_share(stack: LayerStack) -> FrozenShare:
    """The frozen prefix of a model with a single stack of blocks, as it is now.

    Work is measured in parameters, which in a transformer is proportional to operations. Embeddings count for nothing,
    because they are looked up; a head counts in full although it often sees a single vector, so the estimate is low.

    Args:
        stack: The layers.
    """
    layers = [layer for layer in stack if layer.parameters() and not layer.is_bystander]
    blocks = parameters = 0
    for layer in layers:
        if any(p.requires_grad for p in layer.parameters()):
            break
        if layer.is_block:
            blocks, parameters = blocks + 1, parameters + layer.numel
    total = sum(layer.numel for layer in layers if layer.kind != "embeddings")
    return FrozenShare(blocks, parameters, parameters / total if total else 0.0)
