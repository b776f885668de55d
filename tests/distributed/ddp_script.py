"""Fits under DDP, in two processes and in one, and saves what every rank ends with.

Usage: ddp_script.py OUT CASE [CASE ...]            started as torchrun does, by this script
       ddp_script.py OUT --launcher NAME CASE       started by Lightning's own launcher
"""

import multiprocessing
import os
import sys

from distributed_cases import DDP_ONLY, EPOCHS, EVERYWHERE, Case, Save
from distributed_processes import run_ranks
from lightning.pytorch import seed_everything
from lightning.pytorch.strategies import DDPStrategy
from toys import trainer

CASES = {**EVERYWHERE, **DDP_ONLY}


def fit(path, case: Case, strategy, ckpt_path=None):
    seed_everything(0, verbose=False)
    options = {"max_epochs": EPOCHS, **case.options}
    the_trainer = trainer(
        *case.callbacks(),
        Save(path),
        strategy=strategy or "auto",
        devices=2 if strategy else 1,
        use_distributed_sampler=False,
        **options,
    )
    module = case.module()
    if case.backend and strategy:
        module.encoder.compile(backend=case.backend)
    if case.validates:
        the_trainer.validate(module)
    the_trainer.fit(module, ckpt_path=ckpt_path)
    assert all(parameter.requires_grad for parameter in module.parameters()), "not everything was given back"


def main(out, *names):
    def alone():
        for name in names:
            fit(f"{out}/{name}", CASES[name], None)

    def together(rank):
        for name in names:
            fit(f"{out}/{name}", CASES[name], DDPStrategy(process_group_backend="gloo", **CASES[name].ddp))

    if names[0] != "--launcher":
        run_ranks(together, alone)
        return
    _, launcher, *names = names
    if "LOCAL_RANK" not in os.environ:  # the popen launcher starts this script again
        beside = multiprocessing.get_context("fork").Process(target=alone)
        beside.start()
    for name in names:
        fit(f"{out}/{name}", CASES[name], DDPStrategy(process_group_backend="gloo", start_method=launcher))
    if "LOCAL_RANK" not in os.environ or os.environ["LOCAL_RANK"] == "0":
        beside.join()


if __name__ == "__main__":
    main(*sys.argv[1:])
