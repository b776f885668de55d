"""Fits with FSDP2 in two processes, and in one without, and saves what every rank ends with.

Usage: fsdp2_script.py OUT CASE [CASE ...]
"""

import sys

import torch
from ddp_script import fit
from distributed_cases import EVERYWHERE, Case, Module, data, gradual, refreezing
from distributed_processes import run_ranks
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from toys import Encoder, StatefulLoader

from lightning_freeze import SpectrumFreezing


class Sharded(Module):
    """Shards each block, the embeddings and what remains, as the documentation of Lightning has it."""

    policy = MixedPrecisionPolicy()

    def build(self) -> None:
        """Make what ``__init__`` has not made."""

    def configure_model(self) -> None:
        if isinstance(self, FSDPModule):
            return
        self.build()
        mesh = self.device_mesh["data_parallel"]
        for part in (*self.encoder.layers, self.encoder.embeddings, self):
            fully_shard(part, mesh=mesh, mp_policy=self.policy)


class OnMeta(Sharded):
    """Is without storage until it has been sharded."""

    def build(self) -> None:
        with torch.device("meta"):
            self.encoder, self.classifier = Encoder().double(), nn.Linear(8, 2).double()


class Mixed(Sharded):
    """Computes in bfloat16 and reduces gradients in float32."""

    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)

    def __init__(self) -> None:
        super().__init__()
        self.float()


class TensorParallel(Module):
    """Splits the linear layer of each block over the ranks, which all see the same data."""

    def configure_model(self) -> None:
        if isinstance(self.encoder.layers[0].linear.weight, DTensor):
            return
        for block in self.encoder.layers:
            mesh = self.device_mesh["tensor_parallel"]
            parallelize_module(block, mesh, {"linear": ColwiseParallel(output_layouts=Replicate())})

    def train_dataloader(self):
        batches = StatefulLoader()
        batches.batches = list(data(0, 1))
        return batches

    def val_dataloader(self):
        return data(0, 1)


SHARDED_ONLY = {
    "meta": Case(lambda: [gradual(layers_per_phase=2)], 4, module=OnMeta),
    "mixed": Case(lambda: [gradual(layers_per_phase=2)], 4, module=Mixed),
}
# The weights exist only after the layers were found.
LATE = {"spectrum on meta": Case(lambda: [SpectrumFreezing(verbose=False)], 1, module=OnMeta)}
TENSOR_PARALLEL = {"tensor parallel": Case(lambda: [refreezing(restore_best=True)], 4, module=TensorParallel)}
CASES = {**EVERYWHERE, **SHARDED_ONLY, **LATE}


def sharded(case: Case) -> Case:
    """The same case, with a module that shards itself."""
    module = case.module if issubclass(case.module, Sharded) else type("Sharded", (Sharded, case.module), {})
    return Case(case.callbacks, case.phases, case.options, module=module, validates=case.validates)


def strategy(save_distributed_checkpoint=True, data_parallel_size=2):
    return ModelParallelStrategy(
        data_parallel_size=data_parallel_size,
        tensor_parallel_size=2 // data_parallel_size,
        save_distributed_checkpoint=save_distributed_checkpoint,
    )


def main(out, *names):
    def together(rank):
        for name in names:
            if name in TENSOR_PARALLEL:
                fit(f"{out}/{name}", TENSOR_PARALLEL[name], strategy(data_parallel_size=1))
            else:
                fit(f"{out}/{name}", sharded(CASES[name]), strategy())

    def alone():
        for name in names:
            if name in EVERYWHERE:
                fit(f"{out}/{name}", CASES[name], None)
            elif name in TENSOR_PARALLEL:
                case = TENSOR_PARALLEL[name]
                fit(f"{out}/{name}", Case(case.callbacks, case.phases), None)

    run_ranks(together, alone)


if __name__ == "__main__":
    main(*sys.argv[1:])
