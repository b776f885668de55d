"""Fits in two processes with a checkpoint after some steps and each validation, and resumes from them.

Usage: resume_script.py OUT ddp|sharded|full phases|autofreeze|fisher|slimfit
"""

import sys

from ddp_script import fit
from distributed_cases import BestIsFirst, Case, refreezing
from distributed_processes import run_ranks
from fsdp2_script import sharded, strategy
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy

from lightning_freeze import AutoFreeze, DiscriminativeLR, FisherUnfreezing, SlimFit

# The phases begin at steps 3, 4 and 12, and the last one with the weights of step 8.
CHECKPOINTS = ("steps/0-3", "epochs/0-4", "steps/2-9", "steps/2-12", "epochs/2-12")

# Some of the checkpoints are made in the middle of a turn, with half of what is measured in it.
SCHEDULES = {
    "phases": lambda: [refreezing(restore_best=True, warmup_steps=3), DiscriminativeLR(0.9, verbose=False)],
    "autofreeze": lambda: [AutoFreeze(num_intervals=5, verbose=False)],
    "fisher": lambda: [FisherUnfreezing(4, 2, verbose=False)],
    "slimfit": lambda: [SlimFit(0.7, 2, verbose=False)],
}


def case(schedule, *more):
    def callbacks():
        return [*SCHEDULES[schedule](), *more]

    return Case(callbacks, 4, {"max_epochs": 5, "enable_checkpointing": bool(more)}, module=BestIsFirst)


def checkpoints(out, **when):
    return ModelCheckpoint(out, filename="{epoch}-{step}", save_top_k=-1, auto_insert_metric_name=False, **when)


def main(out, kind, schedule):
    def run(path, a_case, ckpt_path=None):
        if kind == "ddp":
            fit(path, a_case, DDPStrategy(process_group_backend="gloo"), ckpt_path)
        else:
            fit(path, sharded(a_case), strategy(kind == "sharded"), ckpt_path)

    def together(rank):
        steps = checkpoints(f"{out}/steps", every_n_train_steps=3)
        epochs = checkpoints(f"{out}/epochs", every_n_epochs=1, save_on_train_epoch_end=False)
        run(f"{out}/straight", case(schedule, steps, epochs))
        for saved in CHECKPOINTS:
            run(f"{out}/{saved.replace('/', ' ')}", case(schedule), f"{out}/{saved}.ckpt")

    run_ranks(together)


if __name__ == "__main__":
    main(*sys.argv[1:])
