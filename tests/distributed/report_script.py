"""A fit in two processes with a report and a logger. Usage: report_script.py OUT ddp|fsdp2."""

import sys
from pathlib import Path

from distributed_processes import run_ranks
from fsdp2_script import Sharded
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy

sys.path.insert(0, str(Path(__file__).parents[1] / "callbacks"))
from toys import loader, make, trainer

from lightning_freeze import FreezeReport, GradualUnfreezing


def work(rank: int) -> None:
    out, strategy = sys.argv[1:]
    is_sharded = strategy == "fsdp2"
    the_trainer = trainer(
        FreezeReport(every_n_steps=1, verbose=False),
        GradualUnfreezing(stop="2", verbose=False),
        strategy=ModelParallelStrategy(2, 1) if is_sharded else DDPStrategy(process_group_backend="gloo"),
        devices=2,
        logger=CSVLogger(out),
    )
    module = Sharded() if is_sharded else make()
    the_trainer.fit(module, loader(8), loader(2, seed=2))


if __name__ == "__main__":
    run_ranks(work)
