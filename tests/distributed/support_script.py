"""Fits what is refused, in two processes, and saves the messages of every rank; and fits that are supported.

Usage: support_script.py OUT
"""

import sys
from pathlib import Path

import torch
import torch.distributed.fsdp
from ddp_script import fit
from distributed_cases import EPOCHS, EVERYWHERE, Case, Module, gradual, phased
from distributed_processes import run_ranks
from fsdp2_script import Sharded, strategy
from lightning.pytorch import Callback
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

from lightning_freeze import DiscriminativeLR, LayerFreezing, Phase, PlateauTrigger, StepTrigger


class Zero(Module):
    def configure_optimizers(self):
        if self.trainer.world_size == 1:
            return super().configure_optimizers()
        from torch.distributed.optim import ZeroRedundancyOptimizer  # warns of what it uses itself

        optimizer = ZeroRedundancyOptimizer(self.parameters(), torch.optim.AdamW, lr=0.01, weight_decay=0.1)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + 0.1 * step))
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


class TwoGroups(Sharded):
    def configure_optimizers(self):
        heads = list(self.classifier.parameters())
        return torch.optim.AdamW([{"params": self.encoder.parameters()}, {"params": heads}], lr=0.01)


class PartlySharded(Module):
    def configure_model(self):
        for block in self.encoder.layers:
            fully_shard(block, mesh=self.device_mesh["data_parallel"])


class OnCPU(FSDPStrategy):
    """FSDP of the first generation; it runs on a CPU if it is told to."""

    def _setup_model(self, model):
        init = FullyShardedDataParallel.__init__

        def on_cpu(self, *args, device_id=None, **kwargs):
            init(self, *args, device_id=torch.device("cpu"), **kwargs)

        FullyShardedDataParallel.__init__ = on_cpu
        try:
            return super()._setup_model(model)
        finally:
            FullyShardedDataParallel.__init__ = init


class SaveGathered(Callback):
    def __init__(self, path):
        self.path = path

    def on_train_end(self, trainer, pl_module):
        model = trainer.strategy.model
        with FullyShardedDataParallel.summon_full_params(model, writeback=False):
            weights = {name.split("_fsdp_wrapped_module.")[-1]: p.detach() for name, p in model.named_parameters()}
            torch.save({"weights": weights}, f"{self.path}-{trainer.global_rank}.pt")


def ddp(**options):
    return DDPStrategy(process_group_backend="gloo", **options)


def fsdp():
    return OnCPU(process_group_backend="gloo")


def static():
    return LayerFreezing("embeddings,:2", verbose=False)


def missing():
    return phased(Phase("head", PlateauTrigger("val_los")), Phase("all"))


def idle():
    return phased(Phase("head", StepTrigger(1)), Phase("all"))


def rates():
    return DiscriminativeLR(0.9, verbose=False)


def scaled():
    return [gradual(layers_per_phase=2, warmup_steps=3), DiscriminativeLR(0.8, verbose=False)]


REFUSED = {
    "nothing trains": (lambda: [LayerFreezing("all", verbose=False)], Module, ddp),
    "idle phase": (lambda: [LayerFreezing("head", verbose=False), idle()], Module, ddp),
    "missing metric": (lambda: [missing()], Module, ddp),
    "power sgd": (
        lambda: [gradual()],
        Module,
        lambda: ddp(ddp_comm_state=PowerSGDState(process_group=None), ddp_comm_hook=powerSGD_hook),
    ),
    "partly sharded": (lambda: [gradual()], PartlySharded, strategy),
    "fsdp, phases": (lambda: [gradual()], Module, fsdp),
    "fsdp, rates": (lambda: [rates()], Module, fsdp),
}
CHECKPOINTS = {"sharded": True, "full": False}


class SaveAtTheEnd(Callback):
    def __init__(self, path):
        self.path = path

    def on_train_end(self, trainer, pl_module):
        trainer.save_checkpoint(self.path)


def main(out):
    def told(rank, name, case, the_strategy, ckpt_path=None):
        try:
            fit(f"{out}/{name}", case, the_strategy, ckpt_path)
            message = "nothing"
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
        Path(f"{out}/{name}-{rank}.txt").write_text(message)

    def together(rank):
        for name, (callbacks, module, make_strategy) in REFUSED.items():
            told(rank, name, Case(callbacks, 0, module=module), make_strategy())
        for name, shards in CHECKPOINTS.items():
            path = f"{out}/{name}.ckpt"
            fit(f"{out}/{name}", Case(lambda p=path: [static(), SaveAtTheEnd(p)], 1, module=Sharded), strategy(shards))
            other = Case(lambda: [gradual(), rates()], 0, {"max_epochs": EPOCHS + 1}, module=Sharded)
            told(rank, f"{name}, other callbacks", other, strategy(shards), path)
            told(rank, f"{name}, other groups", Case(lambda: [gradual()], 0, module=TwoGroups), strategy(shards), path)
        fit(f"{out}/zero", Case(lambda: [static()], 1, module=Zero), ddp())
        fit(f"{out}/zero scaled", Case(scaled, 4, module=Zero), ddp())
        fit(f"{out}/fsdp", Case(lambda: [static(), SaveGathered(f"{out}/fsdp gathered")], 1), fsdp())

    def alone():
        fit(f"{out}/static", EVERYWHERE["static"], None)
        fit(f"{out}/zero scaled", Case(scaled, 4), None)

    run_ranks(together, alone)


if __name__ == "__main__":
    main(*sys.argv[1:])
