"""Fits under DDP with groups whose lr_scale nothing reads, and saves the warnings that each rank shows and keeps.

Usage: warnings_script.py OUT
"""

import json
import sys
import warnings
from pathlib import Path

import distributed_cases  # noqa: F401  it makes the toys importable
import torch
from distributed_processes import run_ranks
from lightning.pytorch.strategies import DDPStrategy
from toys import fit, make

from lightning_freeze import LayerFreezing
from lightning_freeze.run_warnings.record import warnings_of


def optimizers(module):
    parts = (module.encoder, module.classifier)
    groups = [{"params": list(p.parameters()), "lr_scale": s} for p, s in zip(parts, (0.5, 1.0), strict=True)]
    return torch.optim.SGD(groups, lr=0.1)


def main(out):
    def work(rank):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            strategy = DDPStrategy(process_group_backend="gloo")
            module = make(make_optimizers=optimizers)
            the_trainer = fit(module, LayerFreezing("embeddings", verbose=False), strategy=strategy, devices=2)
        shown = [str(w.message) for w in caught if "lr_scale" in str(w.message)]
        kept = [w.message for w in warnings_of(the_trainer)]
        Path(out, f"{rank}.json").write_text(json.dumps({"shown": shown, "kept": kept}))

    run_ranks(work)


if __name__ == "__main__":
    main(*sys.argv[1:])
