"""Compares what `plan_training` predicts with what a run keeps and takes.

    python benchmarks/plan_accuracy.py --quick                 small models, a minute
    python benchmarks/plan_accuracy.py bert-75 --rounds 3      one model at full size
    python benchmarks/plan_accuracy.py --save                  all, and the tables as files in benchmarks/results

Memory is what the last step of a run of ``Trainer.fit`` keeps. Times are median steps of such runs; contenders take
turns in each round, and ratios are taken within a round. The machine should do nothing else.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.saved_results import Figure, Provenance, Table, add_option, save
from benchmarks.speed import quiet, say
from benchmarks.speedtest import measure, memory
from benchmarks.speedtest.contenders import STATIC, Finetuned
from benchmarks.speedtest.subjects import FULL, QUICK, Subject
from lightning_freeze import FrozenPrefixCache, LayerFreezing, TrainingPlan, plan_training

SUBJECTS = ("bert-75", "gpt2-classifier", "vit-75", "minilm")
FULL_RUN, FREEZING, WARM = "full fine-tuning", "LayerFreezing", "LayerFreezing + cache, warm"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subjects", nargs="*", help=f"{', '.join(SUBJECTS)}; all by default")
    parser.add_argument("--quick", action="store_true", help="small models")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--batches", type=int, default=6, help="batches in each of two epochs")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    add_option(parser)
    options = parser.parse_args()
    made = Provenance.now()
    quiet(options.threads)
    known = QUICK if options.quick else FULL
    tables = []
    for name in options.subjects or [name for name in SUBJECTS if name in known]:
        if name not in known:
            parser.error(f"{name!r} is none of {', '.join(known)}")
        subject = replace(known[name](), batches=options.batches, epochs=2)
        tables.append(compared(subject, options.rounds))
        print(tables[-1].markdown(), flush=True)
    if options.save:
        save("plan-accuracy-quick" if options.quick else "plan-accuracy", "Plan and run", tables, made, options.save)


def compared(subject: Subject, rounds: int) -> Table:
    """The table of one subject: planned, measured, and the ratio of both."""
    plan = planned(subject)
    assert plan.full is not None
    phase = plan.phases[0]
    assert phase.memory is not None
    assert phase.time is not None
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for contender, kept in ((FULL_RUN, plan.full), (FREEZING, phase.memory)):
            # One batch, the one that is planned: batches of texts are padded to different lengths.
            found, _ = memory.measured(replace(subject, batches=1, epochs=1), contender, place)
            for part in ("gradients", "optimizer", "activations"):
                row = f"{contender}: {part}, MiB"
                rows[row] = _row(getattr(kept, part) / 2**20, [getattr(found, part) / 2**20])
                say(f"{row}: {rows[row]}")
        seconds = measure.rounds(subject, {n: STATIC[n] for n in (FULL_RUN, FREEZING, WARM)}, rounds, place, say)
    step = measure.STEP
    for contender, time in ((FREEZING, phase.time.freezing), (WARM, phase.time.cached)):
        ratios = [each[f"{contender}{step}"] / each[f"{FULL_RUN}{step}"] for each in seconds]
        rows[f"{contender}: time of a step, full fine-tuning is 1"] = _row(time or 0.0, ratios)
    about = f"Batches of {subject.batch_size}, {subject.batches} in each of 2 epochs, {rounds} rounds."
    return Table(subject.title, rows, about)


def planned(subject: Subject) -> TrainingPlan:
    """The plan of a run with frozen layers and the cache."""
    callbacks = [LayerFreezing(subject.freeze), FrozenPrefixCache()]
    return plan_training(Finetuned(subject.build()), callbacks, subject.batch(), batches_per_epoch=subject.batches)


def _row(predicted: float, found: list[float]) -> dict[str, Figure | float | str]:
    figure = Figure(found, digits=3)
    return {
        "planned": Figure([predicted], digits=3),
        "measured": figure,
        "planned / measured": Figure([predicted / each for each in found], digits=3),
    }


if __name__ == "__main__":
    main()
