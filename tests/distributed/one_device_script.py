"""Fits sharded modules in two processes, then the same one on one device with the hidden states that they have stored.

Usage: one_device_script.py OUT
"""

import sys
from pathlib import Path

import torch
from distributed_processes import run_ranks
from sharded_cache_script import ALL, Recorded, Sharded, fit, static
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from lightning_freeze import FrozenPrefixCache


class BlocksAndRest(Sharded):
    """Shards the embeddings with the rest, and reduces gradients in another dtype."""

    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)

    def configure_model(self):
        mesh = self.device_mesh["data_parallel"]
        for part in (*self.encoder.layers, self):
            fully_shard(part, mesh=mesh, mp_policy=self.policy)


class Single(Sharded):
    """Computes in another dtype than that of its weights."""

    policy = MixedPrecisionPolicy(param_dtype=torch.float32)


class SingleOutput(Sharded):
    """Computes in the dtype of its weights, and returns another one from each block."""

    policy = MixedPrecisionPolicy(param_dtype=torch.float64, output_dtype=torch.float32)

    def forward(self, tokens):
        return self.classifier(self.encoder(tokens).double())


SAME = {"parts": Sharded, "blocks and rest": BlocksAndRest}
OTHER = {"single": Single, "single output": SingleOutput}
ALL.update({name: (static, kind) for name, kind in {**SAME, **OTHER, "alone": Recorded}.items()})
ALONE = {"strategy": "auto", "devices": 1, "max_epochs": 1}


def main(out):
    def cache(name):
        return FrozenPrefixCache(Path(out, name), verbose=False)

    def together(rank):
        for name in (*SAME, *OTHER):
            fit(f"{out}/{name}", name, cache(name), max_epochs=1)

    run_ranks(together)
    fit(f"{out}/alone", "alone", None, **ALONE)
    for name in (*SAME, *OTHER):
        fit(f"{out}/{name} alone", "alone", cache(name), **ALONE)


if __name__ == "__main__":
    main(*sys.argv[1:])
