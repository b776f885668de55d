"""Mixed precision whose loss scaler skips steps, without a GPU."""

import contextlib

import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from toys import Toy, loader, trainer


class Scaled(MixedPrecision):
    """A loss scaler without autocast; gradients overflow until it has halved ``2.0**127`` a few times."""

    def __init__(self, scale=2.0**127):
        super().__init__("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10**9))

    def forward_context(self):
        return contextlib.nullcontext()


class LargeLoss(Toy):
    """A module in float32 whose loss overflows at a scale of ``2.0**127``."""

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * 8


def fit_scaled(optimizer, *callbacks, scale=2.0**127, batches=10, **options):
    """Fit; returns the module and the number of steps that were skipped at least."""
    torch.manual_seed(0)
    module, precision = LargeLoss(make_optimizers=optimizer).float(), Scaled(scale)
    trainer(*callbacks, plugins=[precision], **options).fit(module, loader(batches))
    return module, scale / precision.scaler.get_scale()
