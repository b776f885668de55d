"""Fits with ``save_frozen=False`` in two processes, and resumes from the checkpoints.

Usage: small_checkpoint_script.py OUT ddp|sharded|full [CHECKPOINT]
"""

import sys

import torch
from ddp_script import fit
from distributed_cases import Case
from distributed_processes import run_ranks
from fsdp2_script import sharded, strategy
from lightning.pytorch.strategies import DDPStrategy
from resume_script import checkpoints

from lightning_freeze import GradualUnfreezing, LayerFreezing, StepTrigger

CHECKPOINTS = ("steps/0-1", "steps/0-4", "steps/1-7")


def case(*more):
    def callbacks():
        gradual = GradualUnfreezing(StepTrigger(3), verbose=False, save_frozen=False)
        return [LayerFreezing("embeddings", verbose=False, save_frozen=False), gradual, *more]

    return Case(callbacks, 4, {"max_epochs": 3, "enable_checkpointing": bool(more)})


def main(out, kind, of_ddp=None):
    def run(path, a_case, ckpt_path=None):
        if kind == "ddp":
            fit(path, a_case, DDPStrategy(process_group_backend="gloo"), ckpt_path)
        else:
            fit(path, sharded(a_case), strategy(kind == "sharded"), ckpt_path)

    def together(rank):
        run(f"{out}/straight", case(checkpoints(f"{out}/steps", every_n_train_steps=1)))
        for saved in CHECKPOINTS:
            run(f"{out}/{saved.replace('/', ' ')}", case(), f"{out}/{saved}.ckpt")
        if of_ddp is not None:
            try:
                run(f"{out}/other", case(), of_ddp)
            except Exception as error:
                torch.save({"error": f"{type(error).__name__}: {error}"}, f"{out}/error-{rank}.pt")

    run_ranks(together)


if __name__ == "__main__":
    main(*sys.argv[1:])
