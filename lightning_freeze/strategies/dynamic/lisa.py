"""LISA: a few random blocks at a time."""

from __future__ import annotations

from lightning_freeze.arguments import check_arguments
from lightning_freeze.callbacks.layer_callback import Groups
from lightning_freeze.strategies.candidates import with_ends
from lightning_freeze.strategies.dynamic.dynamic_freezing import DynamicFreezing
from lightning_freeze.strategies.dynamic.policies import RandomLayers


class LISA(DynamicFreezing):
    """Trains the embeddings, the head and a few blocks that are drawn again every few steps.

    LISA (Pan et al., "LISA: Layerwise Importance Sampling for Memory-Efficient Large Language Model Fine-Tuning",
    NeurIPS 2024, arXiv:2403.17919) saves the gradients and the optimizer state of most blocks, and still trains all of
    them in the course of a run. The blocks are drawn uniformly. The optimizer state of a block is dropped when the
    block is frozen again; that of the embeddings and the head is kept.

    Args:
        activated_layers: How many blocks train at a time; 2 as in the paper's main experiments.
        interval: How many optimizer steps pass between two draws; 20 in the published example.
        embeddings: Whether the embeddings train all the time. Backward then runs through every block, and the
            embeddings and the head often hold most of what trains; without them, LISA saves more time and memory.
        head: Whether the head trains all the time. A new head has to.
        seed: Seed of the draws.
        layers: Selector of the layers to draw from; all blocks by default.
        groups: See :class:`PhasedFineTuning`.
        frozen_eval: See :class:`PhasedFineTuning`.
        verbose: See :class:`DynamicFreezing`.
        save_frozen: See :class:`PhasedFineTuning`.

    Raises:
        ConfigurationError: If a number is out of range, or there are fewer layers than ``activated_layers``.
    """

    def __init__(
        self,
        activated_layers: int = 2,
        interval: int = 20,
        embeddings: bool = True,
        head: bool = True,
        seed: int = 0,
        layers: str = ":",
        groups: Groups | None = None,
        frozen_eval: bool = True,
        verbose: bool = True,
        save_frozen: bool = True,
    ) -> None:
        check_arguments(LISA, locals())
        always = with_ends("", embeddings, head)
        policy = RandomLayers(activated_layers, seed)
        self._begin(policy, interval, layers, always or None, True, groups, frozen_eval, verbose, save_frozen)
