"""Fits a module that FSDP2 shards, in two processes that Lightning starts, and prints the hit rate of each.

Usage: launched_ranks_script.py CACHE_DIR
"""

import sys

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, TensorDataset
from toys import Toy, trainer

from lightning_freeze import FrozenPrefixCache, LayerFreezing
from lightning_freeze.cache.prefix import break_even

# Whether reading pays in so small a model depends on the machine.
break_even.SLOWER = float("inf")


class Sharded(Toy):
    def configure_model(self) -> None:
        mesh = self.device_mesh["data_parallel"]
        for part in (*self.encoder.layers, self.encoder, self.classifier):
            fully_shard(part, mesh=mesh)

    def train_dataloader(self) -> DataLoader:
        tokens = torch.randint(0, 16, (32, 5), generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(tokens, tokens.sum(1) % 2), 4, shuffle=True)


def main(folder: str) -> None:
    torch.manual_seed(0)
    module: LightningModule = Sharded()
    cache = FrozenPrefixCache(folder, verbose=False)
    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    freezing = LayerFreezing("embeddings,:2", verbose=False)
    trainer(freezing, cache, strategy=strategy, devices=2, max_epochs=1).fit(module)
    print(f"rank {module.global_rank}: {cache.hit_rate:.2f} {cache.reasons}\n", end="", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
