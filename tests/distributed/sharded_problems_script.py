"""Fits sharded modules in two processes, of which one meets a problem, with and without the cache.

Usage: sharded_problems_script.py OUT CASE [CASE ...]
"""

import sys

import torch
from distributed_cases import gradual
from distributed_processes import run_ranks
from sharded_cache_script import ALL, Sharded, TensorParallel, fit, static
from toys import Block

from lightning_freeze import EpochTrigger, FrozenPrefixCache
from lightning_freeze.cache.prefix import break_even, layout


class GivesNan(Block):
    """Returns NaN while it is told to, and then contributes nothing to a gradient."""

    gives_nan = False

    def forward(self, x):
        return 0 * super().forward(x) + torch.nan if self.gives_nan else super().forward(x)


class OwnNan(Sharded):
    """In one batch, the last block returns NaN on one rank."""

    def __init__(self) -> None:
        super().__init__()
        for block in self.encoder.layers:
            block.__class__ = GivesNan

    def forward(self, tokens):
        return self.classifier(torch.nan_to_num(self.encoder(tokens)))

    def on_train_batch_start(self, batch, batch_idx):
        self.encoder.layers[-1].gives_nan = self.global_rank == 1 and self.current_epoch == 2 and batch_idx == 1

    def on_train_batch_end(self, *_):
        self.encoder.layers[-1].gives_nan = False


class Unreadable(Sharded):
    """In one batch, one rank cannot use what it has read."""

    def on_train_batch_start(self, batch, batch_idx):
        if self.global_rank == 1 and self.current_epoch == 2 and batch_idx == 1:
            layout.lay_out = unreadable

    def on_train_batch_end(self, *_):
        layout.lay_out = LAY_OUT


def unreadable(*_):
    raise OSError("as a worn disk may")


class SlowBeforeAPhase(Sharded):
    """The last pass before the second phase shows on one rank that reading does not pay."""

    def on_validation_batch_start(self, batch, batch_idx):
        is_last = self.trainer.global_step == 8 and batch_idx == 3
        break_even.why_slow_after_reads = slow if is_last and self.global_rank == 1 else MEASURED


def slow(*_):
    return "reading takes longer than computing"


class DropsLayers(Sharded):
    """Has a setting on one rank that forbids to use hidden states."""

    def configure_model(self):
        super().configure_model()
        if self.global_rank == 1:
            self.encoder.layers[-1].layerdrop = 0.1


class Replaced(TensorParallel):
    """A frozen weight is replaced by another one between two epochs."""

    def on_train_epoch_start(self):
        if self.current_epoch == 2:
            linear = self.encoder.layers[0].linear
            linear.weight = torch.nn.Parameter(2 * linear.weight.detach(), requires_grad=False)


LAY_OUT, MEASURED = layout.lay_out, break_even.why_slow_after_reads
CASES = {
    "own nan": (static, OwnNan),
    "unreadable": (static, Unreadable),
    "slow before a phase": (lambda: gradual(layers_per_phase=2, trigger=EpochTrigger(2)), SlowBeforeAPhase),
    "drops layers": (static, DropsLayers),
    "replaced": (static, Replaced),
}
ALL.update(CASES)


def main(out, *names):
    def together(rank):
        for name in names:
            fit(f"{out}/{name} without", name, None, val_check_interval=2)
            fit(f"{out}/{name} with", name, FrozenPrefixCache(verbose=False), val_check_interval=2)

    run_ranks(together)


if __name__ == "__main__":
    main(*sys.argv[1:])
