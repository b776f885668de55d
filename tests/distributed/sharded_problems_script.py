"""Fits sharded modules in two processes, of which one meets a problem, with and without the cache.

Usage: sharded_problems_script.py OUT CASE [CASE ...]
"""

import sys

from distributed_processes import run_ranks
from sharded_cache_script import ALL, Sharded, fit, static

from lightning_freeze import FrozenPrefixCache


class DropsLayers(Sharded):
    """Has a setting on one rank that forbids to use hidden states."""

    def configure_model(self):
        super().configure_model()
        if self.global_rank == 1:
            self.encoder.layers[-1].layerdrop = 0.1


CASES = {
    "drops layers": (static, DropsLayers),
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
