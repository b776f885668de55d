"""A fit in two processes with a report and a logger. Usage: report_script.py OUT."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "callbacks"))
from distributed_processes import run_ranks
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy
from toys import fit, make

from lightning_freeze import FreezeReport, GradualUnfreezing


def work(rank: int) -> None:
    fit(
        make(),
        GradualUnfreezing(stop="2", verbose=False),
        FreezeReport(every_n_steps=1, verbose=False),
        batches=8,
        strategy=DDPStrategy(process_group_backend="gloo"),
        devices=2,
        logger=CSVLogger(sys.argv[1]),
    )


if __name__ == "__main__":
    run_ranks(work)
