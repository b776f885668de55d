"""FreezeOut: the rate of each layer falls to zero, the first layer's first, and the layer is frozen there."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Literal

from lightning.pytorch import LightningModule, Trainer
from torch.nn import Parameter

from lightning_freeze.arguments import check_arguments
from lightning_freeze.callbacks.layer_callback import Groups
from lightning_freeze.errors import ConfigurationError
from lightning_freeze.layers import LayerStack
from lightning_freeze.session.session import Session
from lightning_freeze.strategies.dynamic.statistics import Statistics
from lightning_freeze.strategies.dynamic.turns import TurnByTurn

_POWERS = {"linear": 1, "squared": 2, "cubic": 3}


def freezing_time(depth: int, deepest: int, t_0: float = 0.8, how_scale: str = "cubic") -> float:
    """The share of the run at which a layer is frozen.

    Args:
        depth: Position of the layer, 0 for the first.
        deepest: Position of the last layer, which trains to the end.
        t_0: When the first layer is frozen, before it is squared or cubed.
        how_scale: ``"linear"``, ``"squared"`` or ``"cubic"``.
    """
    between = t_0 + (1 - t_0) * depth / deepest if deepest else 1.0
    return float(between ** _POWERS[how_scale])


def annealed(progress: float, end: float, scale_lr: bool = True) -> float:
    """The factor on the rate of a layer: half a cosine, from its highest value to 0 when the layer is frozen.

    Args:
        progress: The share of the run that is over.
        end: The share of the run at which the layer is frozen.
        scale_lr: Whether the highest factor is ``1 / end`` rather than 1.
    """
    factor = (1 + math.cos(math.pi * min(1.0, progress / end))) / 2
    return factor / end if scale_lr else factor


class FreezeOut(TurnByTurn):
    """Anneals the rate of each layer to zero, the first layer's first, and freezes the layer there (FreezeOut).

    FreezeOut (Brock et al., "FreezeOut: Accelerate Training by Progressively Freezing Layers", 2017,
    arXiv:1706.04983) gives each layer a cosine schedule of its own. Backward stops above the layers that are frozen,
    and a :class:`FrozenPrefixCache` computes them once. Use it with an optimizer without a scheduler, which would
    multiply with this schedule; ``TransformerModule`` leaves its default one out.

    Args:
        t_0: When the first layer is frozen, as a share of the run before it is cubed, above 0 and at most 1; 0.8 in the
            published code, which is 51% of the run. The times of the other layers lie evenly between it and 1.
        how_scale: Whether the times are cubed (as in the published code), squared, or taken as they are.
        scale_lr: Whether the rate of a layer that is frozen earlier begins higher, by one over its time, so that all
            layers travel the same distance.
        groups: See :class:`PhasedFineTuning`.
        frozen_eval: See :class:`PhasedFineTuning`.
        verbose: See :class:`DynamicFreezing`.
        save_frozen: See :class:`PhasedFineTuning`.

    Raises:
        ConfigurationError: If ``t_0`` is out of range, or the length of the run is unknown.
    """

    has_lr_schedule = True

    def __init__(
        self,
        t_0: float = 0.8,
        how_scale: Literal["linear", "squared", "cubic"] = "cubic",
        scale_lr: bool = True,
        groups: Groups | None = None,
        frozen_eval: bool = True,
        verbose: bool = True,
        save_frozen: bool = True,
    ) -> None:
        check_arguments(FreezeOut, locals())
        if not 0 < t_0 <= 1:
            raise ConfigurationError(f"FreezeOut(t_0={t_0!r}): expected a share of the run, above 0 and at most 1.")
        self.t_0 = t_0
        self.how_scale = how_scale
        self.scale_lr = scale_lr
        self._steps: int | None = None
        self._ends: dict[int, float] = {}  # by the height of the layer
        super().__init__(1, "all", None, True, groups, frozen_eval, verbose, save_frozen)

    def prepare(self, session: Session) -> None:  # noqa: D102
        self._steps = None
        heights = sorted({self.stack[name].height for name in self.choices(self.stack)}, reverse=True)
        deepest = heights[0] - heights[-1]
        self._ends = {h: freezing_time(heights[0] - h, deepest, self.t_0, self.how_scale) for h in heights}
        super().prepare(session)
        session.rates.sources.append(self)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        starts = self.schedule.progress.starts
        # Not earlier: asking for the number of steps sets up the data loaders, before their state is restored.
        steps = trainer.estimated_stepping_batches - (starts[0].step if starts else trainer.global_step)
        if math.isinf(steps) or steps < 1:
            raise ConfigurationError(
                "FreezeOut freezes layers at shares of the run, so it needs its length: give Trainer(max_epochs=...) "
                "or max_steps=..."
            )
        self._steps = int(steps)
        super().on_train_start(trainer, pl_module)

    def choose(self, stack: LayerStack, turn: int, statistics: Statistics) -> Sequence[str]:  # noqa: D102
        over = turn / self._steps if self._steps else 0.0
        trains = {height for height, end in self._ends.items() if over < end or end == 1}
        return [name for name in self.choices(stack) if stack[name].height in trains]

    def preview(self, stack: LayerStack) -> Sequence[Sequence[str]]:  # noqa: D102
        names = self.choices(stack)
        return [[name for name in names if stack[name].height <= height] for height in self._ends]

    @property
    def owner(self) -> FreezeOut:  # noqa: D102
        return self

    def rate_key(self, parameter: Parameter) -> Hashable:  # noqa: D102
        layer = self.stack.layer_of(parameter)
        return () if layer is None or layer.is_bystander else layer.height

    def rate_factor(self, key: Hashable) -> float:  # noqa: D102
        starts, over = self.schedule.progress.starts, 0.0
        if self._session is not None and self._steps is not None and starts:
            over = (self._session.trainer.global_step - starts[0].step) / self._steps
        return annealed(over, self._ends.get(key, 1.0) if isinstance(key, int) else 1.0, self.scale_lr)

    def __repr__(self) -> str:
        return f"FreezeOut(t_0={self.t_0!r}, how_scale={self.how_scale!r}, scale_lr={self.scale_lr!r})"
