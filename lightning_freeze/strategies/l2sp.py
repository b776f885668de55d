"""L2-SP: a penalty on the distance from the pre-trained weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from lightning_freeze.arguments import check_arguments
from lightning_freeze.callbacks.layer_callback import Groups, LayerCallback
from lightning_freeze.distributed import gathered, write
from lightning_freeze.errors import ConfigurationError
from lightning_freeze.session.session import Session


class L2SP(LayerCallback):
    """Pulls the weights towards their pre-trained values instead of towards zero.

    L2-SP (Li et al., "Explicit Inductive Bias for Transfer Learning with Convolutional Networks", ICML 2018,
    arXiv:1802.01483) adds ``alpha / 2 * ||w - w0||^2`` over the pre-trained layers and ``beta / 2 * ||w||^2`` over the
    new ones to the loss. The gradient of the penalty is added before each optimizer step, ahead of clipping, so the
    loss that the module logs stays its own. Set ``weight_decay=0`` in the optimizer. Frozen layers are left alone.

    The weights at the start of a fit count as pre-trained. A copy of them is kept beside the model, on its device, and
    in checkpoints, so a resumed run is pulled towards the same weights.

    Args:
        alpha: Strength towards the pre-trained weights, 0 or more; 0.1 is the middle of the range that the paper
            searches.
        beta: Strength towards zero of the new layers, 0 or more; 0.01 in the paper.
        new: Selector of the layers without pre-trained weights; ``None`` if there are none.
        groups: See :class:`DiscriminativeLR`.
        verbose: Whether to print the table of layers.

    Raises:
        ConfigurationError: If a strength is negative or not finite, or ``new`` matches nothing.
    """

    def __init__(
        self,
        alpha: float = 0.1,
        beta: float = 0.01,
        new: str | None = "head",
        groups: Groups | None = None,
        verbose: bool = True,
    ) -> None:
        check_arguments(L2SP, locals())
        super().__init__(groups=groups, verbose=verbose)
        for name, value in (("alpha", alpha), ("beta", beta)):
            if not 0 <= value < math.inf:
                raise ConfigurationError(f"L2SP({name}={value!r}): expected a finite number, 0 or more.")
        self.alpha = alpha
        self.beta = beta
        self.new = new
        self._anchors: dict[str, tuple[Parameter, Tensor]] = {}
        self._new: dict[Parameter, None] = {}

    def prepare(self, session: Session) -> None:  # noqa: D102
        self._new = dict.fromkeys(self.stack.select(self.new).parameters) if self.new else {}
        self._anchors = {
            name: (parameter, parameter.detach().clone())
            for layer in self.stack
            if not layer.is_bystander
            for name, parameter in layer.named_parameters()
            if parameter not in self._new and parameter.is_floating_point()
        }

    @torch.no_grad()
    def on_before_optimizer_step(  # noqa: D102
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        # Under mixed precision, gradients are unscaled at this point.
        held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
        for name, (parameter, anchor) in self._anchors.items():
            if parameter.grad is not None and parameter in held:
                # The module has moved since the copy was made. Copies of frozen layers take no room on the device.
                if (anchor.device, anchor.dtype) != (parameter.device, parameter.dtype):
                    anchor = anchor.to(parameter.device, parameter.dtype)
                    self._anchors[name] = parameter, anchor
                parameter.grad.add_(parameter - anchor, alpha=self.alpha)
        for parameter in self._new:
            if parameter.grad is not None and parameter in held:
                parameter.grad.add_(parameter, alpha=self.beta)
        super().on_before_optimizer_step(trainer, pl_module, optimizer)

    def state_dict(self) -> dict[str, Any]:
        """The pre-trained weights; called on all ranks."""
        return {
            "anchors": {name: gathered(anchor) for name, (_, anchor) in self._anchors.items()},
            "rates": self.rates_state(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`.

        Raises:
            ConfigurationError: If the checkpoint was made with other layers.
        """
        self._rates = state_dict["rates"]
        saved = state_dict["anchors"]
        if not self._anchors:
            return  # a test or a prediction
        if saved.keys() != self._anchors.keys():
            changed = sorted(saved.keys() ^ self._anchors.keys())
            raise ConfigurationError(
                f"L2SP cannot be resumed: the checkpoint holds pre-trained weights of other parameters ({changed[0]}). "
                f"Resume with the same module and new={self.new!r} as before."
            )
        for name, (_, anchor) in self._anchors.items():
            write(anchor, saved[name])

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_anchors": {}, "_new": {}}
