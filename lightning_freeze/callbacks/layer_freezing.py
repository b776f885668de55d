"""Static freezing."""

from __future__ import annotations

from torch.nn import Parameter

from lightning_freeze.arguments import check_arguments
from lightning_freeze.callbacks.layer_callback import FreezingCallback, Groups
from lightning_freeze.errors import ConfigurationError
from lightning_freeze.session.session import Session


class LayerFreezing(FreezingCallback):
    """Freezes layers for the whole run.

    Frozen means: no gradient, not moved by the optimizer (weight decay and momentum included), and in eval mode.
    Freezing the layers from the input up, the embeddings among them, saves the most: backward then stops where the
    frozen part ends.

    Args:
        layers: Selector of what to freeze, such as ``"embeddings,:8"`` (the embeddings and the first eight blocks),
            ``"75%"`` (the embeddings and the first three quarters of the blocks) or ``"*.bias"`` (single parameters).
        groups: An explicit, ordered map from layer name to module-name prefixes, instead of the layers that are found
            automatically. Parameters that the map leaves out stay untouched.
        frozen_eval: Whether frozen modules are in eval mode: dropout off, BatchNorm statistics still. Turn it off to
            keep the noise of dropout in frozen layers.
        verbose: Whether to print the table of layers.
        save_frozen: Whether checkpoints hold frozen weights. ``False`` leaves out what is frozen, by this callback or
            by the module itself, and as it was when the module was built. A checkpoint then has a fingerprint of each
            weight, and takes it from the module that loads it, which has to be built with the same base weights.
            Frozen weights that anything has changed are saved.

    Raises:
        ConfigurationError: If the selector is malformed or matches nothing, or nothing is left to train.

    Examples:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[LayerFreezing("embeddings,:8")])  # doctest: +SKIP
    """

    def __init__(
        self,
        layers: str,
        groups: Groups | None = None,
        frozen_eval: bool = True,
        verbose: bool = True,
        save_frozen: bool = True,
    ) -> None:
        check_arguments(LayerFreezing, locals())
        super().__init__(groups=groups, frozen_eval=frozen_eval, verbose=verbose, save_frozen=save_frozen)
        if not isinstance(layers, str) or not layers.strip():
            raise ConfigurationError(f"LayerFreezing(layers={layers!r}): expected a selector such as 'embeddings,:8'.")
        self.layers = layers

    def prepare(self, session: Session) -> None:  # noqa: D102
        selection = self.stack.select(self.layers)
        session.holds.hold(self, selection.parameters, selection.modules if self.frozen_eval else ())

    def omitted_when_frozen(self) -> dict[Parameter, str]:  # noqa: D102
        everything = super().omitted_when_frozen()
        assert self._session is not None
        own, holds = set(self.stack.select(self.layers).parameters), self._session.holds
        # What the module itself has frozen, as PEFT does, no phase will train either.
        return {p: layer for p, layer in everything.items() if p in own or not holds.given(p)}

    def check(self, session: Session) -> None:  # noqa: D102
        if not self.frozen_eval:
            return
        # A layer may be frozen as a whole by single parameters, or by several callbacks together.
        selection = self.stack.select(self.layers)
        held = [p for layer in self.stack for p in layer.parameters() if session.holds.holders(p)]
        modules = dict.fromkeys([*selection.modules, *self.stack.modules_within(held)])
        session.holds.hold(self, selection.parameters, modules)
