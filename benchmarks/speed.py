"""Measures what freezing and the cache of the frozen prefix save, against every alternative and the limit.

    pip install "lightning-freeze[benchmark,cache]"
    python benchmarks/speed.py --quick                    small models, under a minute
    python benchmarks/speed.py bert-75 gpt2-lm --rounds 3 models at true size
    python benchmarks/speed.py gradual                    gradual unfreezing of BERT-base, 12 epochs

Every contender runs end to end through ``Trainer.fit``: data loading, callbacks, validation and optimizer included.
The ideal is a model cut by hand to what trains, in a plain loop, on activations that lie in RAM. Contenders take turns
in each round; ratios are taken within a round.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import sys
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.speedtest import limits, measure
from benchmarks.speedtest.contenders import GRADUAL, STATIC
from benchmarks.speedtest.subjects import FULL, QUICK, Subject, bert

BASE = "full fine-tuning"
GRADUAL_SUBJECTS = {
    True: lambda: bert(3, blocks=4, width=256, length=64, batch_size=8, batches=2, epochs=12),
    False: lambda: bert(9, batch_size=8, batches=2, epochs=12),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("subjects", nargs="*", help=f"{', '.join(FULL)}, gradual; all by default")
    parser.add_argument("--quick", action="store_true", help="small models")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--memory", action="store_true", help="measure peak memory too, each in a process of its own")
    parser.add_argument("--markdown", type=Path, help="file to append the tables to, beside printing them")
    options = parser.parse_args()
    quiet()
    torch.set_num_threads(options.threads)
    known = {**(QUICK if options.quick else FULL), "gradual": GRADUAL_SUBJECTS[options.quick]}
    for name in options.subjects or known:
        if name not in known:
            parser.error(f"{name!r} is none of {', '.join(known)}")
        text = compare(name, known[name](), options)
        print(text, flush=True)
        if options.markdown:
            with options.markdown.open("a") as file:
                file.write(f"{text}\n")


def compare(name: str, subject: Subject, options: argparse.Namespace) -> str:
    """One table."""
    contenders = GRADUAL if name == "gradual" else STATIC
    work = limits.count(subject)
    peaks = {}
    if options.memory:
        peaks = {contender: peak_of(name, contender, options) for contender in contenders}
    with tempfile.TemporaryDirectory() as folder:
        found = measure.rounds(subject, contenders, options.rounds, Path(folder), say)
    rows = [["", "seconds", f"times faster than {BASE}", "limit", "reached", *(["peak memory"] if peaks else [])]]
    rows.append(["---"] * len(rows[0]))
    for contender in contenders:
        ratio = measure.ratios(found, contender, BASE)
        seconds = sorted(seconds[contender] for seconds in found)[len(found) // 2]
        limit = work.limit(contender, subject.epochs, subject.batches) if name != "gradual" else None
        cells = [f"{limit:.2f}", f"{ratio.median / limit:.0%}"] if limit else ["", ""]
        memory = [f"{peaks[contender] / 2**30:.2f} GiB"] if peaks else []
        rows.append([contender, f"{seconds:.1f}", str(ratio), *cells, *memory])
    head = (
        f"### {subject.title}\n\nBatches of {subject.batch_size}, {subject.batches} in an epoch and one of validation, "
        f"{subject.epochs} epochs, {options.rounds} rounds, {options.threads} threads; "
        f"{work.frozen:.0%} of the forward pass is frozen. torch {version('torch')}, "
        f"transformers {version('transformers')}.\n"
    )
    return "\n".join([head, *(f"| {' | '.join(row)} |" for row in rows), ""])


def peak_of(name: str, contender: str, options: argparse.Namespace) -> int:
    """Peak memory of one contender beyond what the imports take, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return int(pool.apply(_peak, (name, contender, options.quick, options.threads)))


def _peak(name: str, contender: str, quick: bool, threads: int) -> int:
    quiet()
    torch.set_num_threads(threads)
    known = {**(QUICK if quick else FULL), "gradual": GRADUAL_SUBJECTS[quick]}
    before = measure.peak_memory()
    with tempfile.TemporaryDirectory() as folder:
        (GRADUAL if name == "gradual" else STATIC)[contender](known[name](), Path(folder))()
    return measure.peak_memory() - before


def quiet() -> None:
    """No word but the tables and the progress."""
    warnings.simplefilter("ignore")
    for logger in ("lightning.pytorch", "lightning.fabric", "finetuning_scheduler", "transformers"):
        logging.getLogger(logger).setLevel(logging.ERROR)


def say(text: str) -> None:
    """Progress, beside the tables."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
