"""BAdam: block coordinate descent."""

from __future__ import annotations

from typing import Literal

from lightning_freeze.arguments import check_arguments
from lightning_freeze.callbacks.layer_callback import Groups
from lightning_freeze.strategies.candidates import with_ends
from lightning_freeze.strategies.dynamic.dynamic_freezing import DynamicFreezing, steps_in_epoch
from lightning_freeze.strategies.dynamic.policies import OneLayerAtATime


class BlockCoordinate(DynamicFreezing):
    """Trains one layer at a time, for a number of steps, over and over (BAdam).

    BAdam (Luo et al., "BAdam: A Memory Efficient Full Parameter Optimization Method for Large Language Models",
    NeurIPS 2024, arXiv:2404.02827) is block coordinate descent with Adam. Each turn of a layer begins with an empty
    optimizer state, so the optimizer holds the state of one layer only. Use it with Adam or AdamW.

    Args:
        interval: How many optimizer steps the turn of a layer lasts. By default ``min(max(n / (B * D), 50), 100)`` as
            in the published code, for n training examples, batches of B and D layers.
        order: ``"descending"`` from the top down, which is the default of the published code, ``"ascending"``, or
            ``"random"``, a new order in each cycle.
        embeddings: Whether the embeddings take a turn too; not in the published code.
        head: Whether the head takes a turn too. A new head has to train, so it does by default.
        seed: Seed of the random orders.
        layers: Selector of the blocks that take turns; all by default.
        groups: See :class:`PhasedFineTuning`.
        frozen_eval: See :class:`PhasedFineTuning`.
        verbose: See :class:`DynamicFreezing`.
        save_frozen: See :class:`PhasedFineTuning`.

    Raises:
        ConfigurationError: If ``interval`` is not positive, or a selector matches nothing.
    """

    begins_turns_afresh = True

    def __init__(
        self,
        interval: int | None = None,
        order: Literal["descending", "ascending", "random"] = "descending",
        embeddings: bool = False,
        head: bool = True,
        seed: int = 0,
        layers: str = ":",
        groups: Groups | None = None,
        frozen_eval: bool = True,
        verbose: bool = True,
        save_frozen: bool = True,
    ) -> None:
        check_arguments(BlockCoordinate, locals())
        chosen = with_ends(layers, embeddings, head)
        self._begin(
            OneLayerAtATime(order, seed), interval, chosen, None, True, groups, frozen_eval, verbose, save_frozen
        )

    def turn_length(self) -> int:  # noqa: D102
        if self.interval is not None:
            return self.interval
        assert self._session is not None
        per_layer = steps_in_epoch(self._session.trainer) / len(self.choices(self.stack))
        return int(min(max(per_layer, 50), 100))
