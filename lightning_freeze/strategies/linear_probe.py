"""LP-FT: a linear probe first, then full fine-tuning."""

from __future__ import annotations

from typing import Literal

from lightning_freeze.arguments import check_arguments
from lightning_freeze.callbacks.layer_callback import Groups
from lightning_freeze.callbacks.phased_fine_tuning import NEEDS, PhasedFineTuning
from lightning_freeze.layers import LayerStack
from lightning_freeze.schedule.phases import Phase, gradual_phases
from lightning_freeze.schedule.triggers import EpochTrigger, Trigger


class LinearProbeThenFineTune(PhasedFineTuning):
    """Trains the head on frozen features, then the whole model (LP-FT).

    A random head sends large gradients into the pre-trained layers and distorts their features, which costs accuracy
    on data from another distribution. LP-FT (Kumar et al., "Fine-Tuning can Distort Pretrained Features and
    Underperform Out-of-Distribution", ICLR 2022, arXiv:2202.10054) trains the head first, so that fine-tuning starts
    with small gradients.

    Args:
        trigger: When the probe ends. The paper trains it to convergence: ``PlateauTrigger("val_loss")`` does so.
            ``EpochTrigger(1)`` is the default because it needs no validation.
        lr: Factor on the user's rate during fine-tuning. The paper tunes the two rates separately.
        head: Selector of what the probe trains. ``"head"`` means the top layer where a model has no head.
        fine_tune: Selector of what trains after the probe, such as ``"0:,head"`` to leave the embeddings out.
        restore_best: Whether fine-tuning starts from the best probe rather than the last one.
        monitor: See :class:`PhasedFineTuning`.
        mode: See :class:`PhasedFineTuning`.
        warmup_steps: See :class:`PhasedFineTuning`.
        groups: See :class:`PhasedFineTuning`.
        frozen_eval: Whether frozen modules are in eval mode, so that the probe sees the same features in every epoch.
        verbose: See :class:`PhasedFineTuning`.
        save_frozen: See :class:`PhasedFineTuning`.

    Raises:
        ConfigurationError: If a selector matches nothing, or a factor is negative or not finite.

    Example:
        >>> LinearProbeThenFineTune(EpochTrigger(3), lr=0.1)
        LinearProbeThenFineTune(trigger=EpochTrigger(3), lr=0.1, head='head', fine_tune='all')
    """

    def __init__(
        self,
        trigger: Trigger = EpochTrigger(1),  # noqa: B008  (triggers are immutable)
        lr: float = 1.0,
        head: str = "head",
        fine_tune: str = "all",
        restore_best: bool = False,
        monitor: str | None = None,
        mode: Literal["min", "max"] | None = None,
        warmup_steps: int = 0,
        groups: Groups | None = None,
        frozen_eval: bool = True,
        verbose: bool = True,
        save_frozen: bool = True,
    ) -> None:
        check_arguments(LinearProbeThenFineTune, locals(), needs=NEEDS)
        super().__init__(
            phases=[Phase(head, trigger), Phase(fine_tune, lr=lr)],
            restore_best=restore_best,
            monitor=monitor,
            mode=mode,
            warmup_steps=warmup_steps,
            groups=groups,
            frozen_eval=frozen_eval,
            verbose=verbose,
            save_frozen=save_frozen,
        )
        self.trigger = trigger
        self.lr = lr
        self.head = head
        self.fine_tune = fine_tune

    def build_phases(self, stack: LayerStack) -> list[Phase]:  # noqa: D102
        probe = gradual_phases(stack, self.trigger, self.head)[0].train
        return [Phase(probe, self.trigger), Phase(self.fine_tune, lr=self.lr)]

    def __repr__(self) -> str:
        return (
            f"LinearProbeThenFineTune(trigger={self.trigger!r}, lr={self.lr!r}, head={self.head!r}, "
            f"fine_tune={self.fine_tune!r})"
        )
