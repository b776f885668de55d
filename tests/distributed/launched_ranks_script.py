"""Fits a module that FSDP2 shards, in two processes that Lightning starts, and prints the hit rate of each.

Usage: launched_ranks_script.py CACHE_DIR
"""

import sys

import torch
from fsdp2_script import strategy
from sharded_cache_script import Sharded, static
from torch.utils.data import DataLoader, TensorDataset
from toys import trainer

from lightning_freeze import FrozenPrefixCache


class Shuffled(Sharded):
    """Its samples are shuffled over the ranks."""

    def train_dataloader(self) -> DataLoader:
        tokens = torch.randint(0, 16, (32, 5), generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(tokens, tokens.sum(1) % 2), 4, shuffle=True)


def main(folder: str) -> None:
    torch.manual_seed(0)
    module, cache = Shuffled(), FrozenPrefixCache(folder, verbose=False)
    trainer(static(), cache, strategy=strategy(), devices=2, max_epochs=1, limit_val_batches=0).fit(module)
    print(f"rank {module.global_rank}: {cache.hit_rate:.2f} {cache.reasons}\n", end="", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
