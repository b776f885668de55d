"""Frozen is frozen: no optimizer, precision, clipping or accumulation moves a bit of a frozen layer."""

import itertools

import pytest
import torch
from torch import nn
from toys import Recorder, fit, layer_of, make, moved, weights

from lightning_freeze import EpochTrigger, Phase, PhasedFineTuning

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adamw foreach": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, foreach=True),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, fused=True),
    "adamw amsgrad": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, amsgrad=True, foreach=False),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01, weight_decay=0.1),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True, weight_decay=0.1),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01, weight_decay=0.1),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.01, weight_decay=0.1),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
    "asgd": lambda p: torch.optim.ASGD(p, lr=0.01, weight_decay=0.1),
}
# A layer that has trained, and has momentum, is frozen again; another one never trains.
AGAIN = [Phase("1:,head", EpochTrigger(1)), Phase("3,head", EpochTrigger(1)), Phase("2:,head")]


def with_batch_norm(make_optimizer, keeps_gradients):
    module = make(make_optimizers=lambda m: make_optimizer(m.parameters()), dropout=0.1)
    for block in module.encoder.layers:
        block.norm = Normalized(8).to(torch.float64)
    if keeps_gradients:
        module.optimizer_zero_grad = lambda epoch, batch_idx, optimizer: optimizer.zero_grad(set_to_none=False)
    return module


class Normalized(nn.Module):
    """Batch normalization over the width, with its running statistics."""

    def __init__(self, width):
        super().__init__()
        self.batch_norm = nn.BatchNorm1d(width)

    def forward(self, x):
        return self.batch_norm(x.transpose(1, 2)).transpose(1, 2)


class Watch(Recorder):
    """Snapshots at every start of an epoch, and a look at the gradients after every backward pass."""

    def __init__(self):
        super().__init__()
        self.snapshots = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if batch_idx == 0:
            self.snapshots.append(weights(pl_module))

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        super().on_before_optimizer_step(trainer, pl_module, optimizer)
        for name, parameter in pl_module.named_parameters():
            assert (parameter.grad is not None) == (layer_of(name) in self.trains[-1]), name


@pytest.mark.fast_cases(31)
@pytest.mark.parametrize("clip", [{}, {"gradient_clip_val": 0.1}, {"gradient_clip_val": 0.1, "algorithm": "value"}])
@pytest.mark.parametrize(("accumulate", "keeps_gradients"), [(1, True), (2, False), (3, True)])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_frozen_and_refrozen_layers_stay_bit_identical_and_the_others_move(name, accumulate, keeps_gradients, clip):
    watch, module = Watch(), with_batch_norm(OPTIMIZERS[name], keeps_gradients)
    options = {"gradient_clip_algorithm": clip.get("algorithm"), "gradient_clip_val": clip.get("gradient_clip_val")}
    fit(module, PhasedFineTuning(AGAIN, verbose=False), watch, accumulate_grad_batches=accumulate, **options)
    watch.snapshots.append(weights(module))
    changes = [moved(before, after) for before, after in itertools.pairwise(watch.snapshots)]
    assert changes == [{"1", "2", "3", "head"}, {"3", "head"}, {"2", "3", "head"}]


@pytest.mark.fast_cases(5)
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "32-true", "64-true"])
@pytest.mark.parametrize("name", ["sgd", "adamw foreach", "adamw fused", "adafactor"])
def test_in_every_precision(name, precision):
    watch, module = Watch(), with_batch_norm(OPTIMIZERS[name], keeps_gradients=True).float()
    clip = None if "fused" in name and "mixed" in precision else 0.5  # Lightning refuses the two together
    fit(module, PhasedFineTuning(AGAIN, verbose=False), watch, precision=precision, gradient_clip_val=clip)
    watch.snapshots.append(weights(module))
    changes = [moved(before, after) for before, after in itertools.pairwise(watch.snapshots)]
    assert changes == [{"1", "2", "3", "head"}, {"3", "head"}, {"2", "3", "head"}]


def test_without_the_callback_these_very_runs_do_move_them():
    # What the tests above rely on: gradients left at zero, as a plain `requires_grad = False` in mid-run leaves them,
    # would let momentum and weight decay move the layers.
    class ByHand(Recorder):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                self.before = weights(pl_module)
                pl_module.encoder.layers[1].requires_grad_(False)

    by_hand, module = ByHand(), with_batch_norm(OPTIMIZERS["adamw foreach"], keeps_gradients=True)
    fit(module, by_hand)
    assert "1" in moved(by_hand.before, weights(module))
