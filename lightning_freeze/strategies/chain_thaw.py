"""Chain-thaw: one layer at a time, then all of them."""

from __future__ import annotations

from typing import Literal

from lightning_freeze.arguments import check_arguments
from lightning_freeze.callbacks.layer_callback import Groups
from lightning_freeze.callbacks.phased_fine_tuning import NEEDS, PhasedFineTuning
from lightning_freeze.errors import ConfigurationError
from lightning_freeze.layers import LayerStack
from lightning_freeze.layers.analysis.unused_copies import layers_without_adapters
from lightning_freeze.schedule.phases import Phase, gradual_phases
from lightning_freeze.schedule.triggers import PlateauTrigger, Trigger
from lightning_freeze.session.session import Session
from lightning_freeze.strategies.candidates import candidates


class ChainThaw(PhasedFineTuning):
    """Trains the head, then each other layer alone from the input up, then all layers together.

    Chain-thaw is from DeepMoji (Felbo et al., "Using millions of emoji occurrences to learn any-domain
    representations", EMNLP 2017, arXiv:1708.00524). Only one layer trains at a time, so that each can adapt with little
    risk of overfitting. The defaults are those of the published code: every phase ends after 5 validations without
    improvement, the next one begins with the best weights, and the head trains at ten times the rate of all later
    phases.

    Args:
        trigger: Ends each phase but the last one.
        lr: Factor on the user's rate in all phases after the first; 0.1 as in the published code (1e-3, then 1e-4).
        head: Selector of what trains first. ``"head"`` means the top layer where a model has no head.
        layers: Selector of the layers that train one by one afterwards, and in the last phase together with ``head``.
            ``"0:"`` leaves the embeddings out.
        restore_best: Whether each phase begins with the best weights of the one before.
        monitor: See :class:`PhasedFineTuning`; by default the metric that the trigger watches.
        mode: See :class:`PhasedFineTuning`.
        warmup_steps: See :class:`PhasedFineTuning`.
        drop_optimizer_state: Whether a layer's optimizer state is dropped when its turn ends. The published code
            compiles a new optimizer for each phase.
        groups: See :class:`PhasedFineTuning`.
        frozen_eval: See :class:`PhasedFineTuning`.
        verbose: See :class:`PhasedFineTuning`.
        save_frozen: See :class:`PhasedFineTuning`.

    Raises:
        ConfigurationError: If a selector matches nothing or no layer remains beside the head, or ``restore_best`` is
            set and no metric is known.

    Example:
        >>> from lightning_freeze import EpochTrigger
        >>> ChainThaw(EpochTrigger(2), layers="0:", monitor="val_acc")
        ChainThaw(trigger=EpochTrigger(2), lr=0.1, head='head', layers='0:')
    """

    skips_idle_phases = True

    def __init__(
        self,
        trigger: Trigger = PlateauTrigger("val_loss", patience=4),  # noqa: B008  (triggers are immutable)
        lr: float = 0.1,
        head: str = "head",
        layers: str = "all",
        restore_best: bool = True,
        monitor: str | None = None,
        mode: Literal["min", "max"] | None = None,
        warmup_steps: int = 0,
        drop_optimizer_state: bool = True,
        groups: Groups | None = None,
        frozen_eval: bool = True,
        verbose: bool = True,
        save_frozen: bool = True,
    ) -> None:
        check_arguments(ChainThaw, locals(), needs=NEEDS)
        super().__init__(
            phases=[Phase(head, trigger), Phase(layers, lr=lr)],
            restore_best=restore_best,
            monitor=monitor,
            mode=mode,
            warmup_steps=warmup_steps,
            drop_optimizer_state=drop_optimizer_state,
            groups=groups,
            frozen_eval=frozen_eval,
            verbose=verbose,
            save_frozen=save_frozen,
        )
        self.trigger = trigger
        self.lr = lr
        self.head = head
        self.layers = layers
        self._idle: set[str] = set()  # layers that train nothing when they are unfrozen

    def prepare(self, session: Session) -> None:  # noqa: D102
        with session.holds.lifted():
            self._idle = layers_without_adapters(self.stack)
        super().prepare(session)

    def build_phases(self, stack: LayerStack) -> list[Phase]:  # noqa: D102
        first = gradual_phases(stack, self.trigger, self.head)[0].train
        in_first = {layer.name for layer in stack.select(first).layers}
        chain = candidates(stack.select(self.layers).layers, in_first | self._idle)
        if not chain:
            raise ConfigurationError(
                f"ChainThaw(layers={self.layers!r}) names no layer beside head={self.head!r}; expected further layers "
                f"of {', '.join(stack.names)}."
            )
        alone = [Phase(name, self.trigger, lr=self.lr) for name in chain]
        return [Phase(first, self.trigger), *alone, Phase(",".join([*chain, first]), lr=self.lr)]

    def __repr__(self) -> str:
        return f"ChainThaw(trigger={self.trigger!r}, lr={self.lr!r}, head={self.head!r}, layers={self.layers!r})"
