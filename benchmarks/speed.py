"""Measures what freezing and the cache of the frozen prefix save, against the alternatives and the limit.

    pip install "lightning-freeze[benchmark]"
    python benchmarks/speed.py --quick                    small models, a minute or two
    python benchmarks/speed.py bert-75 gpt2-lm --rounds 3 models at full size
    python benchmarks/speed.py t5-80 --batches 24         a longer run, in which one-time costs weigh less
    python benchmarks/speed.py gradual --turns            gradual unfreezing of BERT-base, 12 epochs
    python benchmarks/speed.py bert-75 --memory           what training keeps in memory, instead of its time
    python benchmarks/speed.py bert-75 --save             the same tables as files in benchmarks/results
    python benchmarks/speed.py --publish                  everything in docs/performance.md: a night, resumable

Every contender runs end to end through ``Trainer.fit``: data loading, callbacks, validation and optimizer included.
The ideal is a model cut by hand to what trains, in a plain loop, on activations in RAM. Contenders take turns
in each round, with --turns after each epoch; ratios are taken within a round.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import shlex
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.saved_results import RESULTS, Figure, Provenance, Table, add_option, save
from benchmarks.speedtest import limits, measure, memory
from benchmarks.speedtest.contenders import FILLED, FILLED_AHEAD, GRADUAL, PACKAGES, STATIC, Contender
from benchmarks.speedtest.publish import PARTS, QUICK_PARTS, publish
from benchmarks.speedtest.subjects import FULL, QUICK, REVIEWS, Subject

#: What else is compared: times faster than, or, for the ideal, as long as.
PAIRS = (
    ("LayerFreezing", "requires_grad by hand", "LayerFreezing is {} times as fast as the loop by hand"),
    ("LayerFreezing + cache, cold", "BackboneFinetuning", "cold is {} times as fast as BackboneFinetuning"),
    ("LayerFreezing + cache, cold", "finetuning-scheduler", "cold is {} times as fast as finetuning-scheduler"),
    ("ideal, cut by hand", "LayerFreezing + cache, warm", "warm takes {} times as long as the ideal"),
    (
        f"ideal, cut by hand{measure.STEP}",
        f"LayerFreezing + cache, warm{measure.STEP}",
        "a warm step takes {} times as long as one of the ideal",
    ),
    ("GradualUnfreezing + cache, cold", "GradualUnfreezing", "cold is {} times as fast as GradualUnfreezing"),
    (FILLED_AHEAD, "LayerFreezing + cache, cold", "filling ahead and the fit are {} times as fast as cold"),
    (FILLED_AHEAD, "GradualUnfreezing + cache, cold", "filling ahead and the fit are {} times as fast as cold"),
)
#: Columns of a table of memory.
_MEMORY_COLUMNS = (
    "weights",
    "gradients",
    "optimizer",
    "activations",
    "peak of the process",
    "most within a warm step",
    "held after it",
)
_Memory = tuple[Sequence[int], Sequence[int], int, memory.OfProcess]


def option_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subjects", nargs="*", help=f"{', '.join(FULL)}; all by default")
    parser.add_argument("--quick", action="store_true", help="small models")
    parser.add_argument("--rounds", type=int, help="3 by default, 1 with --quick")
    parser.add_argument("--batches", type=int, help="batches in a training epoch, other than the model's own number")
    parser.add_argument("--epochs", type=int, help="epochs of a run, other than the model's own number")
    parser.add_argument("--batch-size", type=int, help="samples in a batch, other than the model's own number")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--without",
        nargs="*",
        default=[],
        choices=sorted({*STATIC, *GRADUAL}),
        metavar="CONTENDER",
        help="leave some out",
    )
    parser.add_argument("--memory", action="store_true", help="measure memory, each in a process of its own")
    parser.add_argument(
        "--turns",
        action="store_true",
        help="contenders alternate after each epoch, with all of them in memory: for a machine whose speed drifts",
    )
    parser.add_argument("--fill", action="store_true", help="compare with a cache that is filled ahead, too")
    parser.add_argument(
        "--publish",
        action="store_true",
        help="run and save everything in docs/performance.md that is not of this code; alone, or with --quick",
    )
    parser.add_argument("--markdown", type=Path, help="file to append the tables to, beside printing them")
    add_option(parser)
    return parser


def main() -> None:
    parser = option_parser()
    options = parser.parse_args()
    made = Provenance.now("finetuning-scheduler")
    if options.publish and options != parser.parse_args(_publishing(options)):
        parser.error("--publish decides about models, rounds and contenders: it takes --quick and --save-to only")
    options.rounds = options.rounds or (1 if options.quick else 3)
    quiet(options.threads)
    known = QUICK if options.quick else FULL
    names = options.subjects or list(known)
    for name in names:
        if name not in known:
            parser.error(f"{name!r} is none of {', '.join(known)}")
    if not options.memory and (missing := missing_tools([known[name]() for name in names], options.without)):
        or_else = "" if options.publish else f", or --without {shlex.join([*options.without, *missing])}"
        parser.error(f"not installed: {', '.join(missing)}. pip install 'lightning-freeze[benchmark]'{or_else}")
    if "minilm" in names and not REVIEWS.exists():
        parser.error(f"{REVIEWS} does not exist: python experiments/reviews/prepare.py")
    if options.publish:
        parts = QUICK_PARTS if options.quick else PARTS
        try:
            path = publish(parts, options.save or RESULTS, made, say, "speed-quick" if options.quick else "speed")
            print(path.with_suffix(".md").read_text(encoding="utf-8"))
        except RuntimeError as error:
            parser.error(str(error))
        return
    given = {name: getattr(options, name) for name in ("batches", "epochs", "batch_size")}
    own = {name: number for name, number in given.items() if number is not None}
    if options.memory and (own or options.turns):
        parser.error("--batches, --epochs, --batch-size and --turns do not go with --memory, which looks at one step")
    for name in names:
        found = memory_table(name, options) if options.memory else times(replace(known[name](), **own), options)
        print(found.markdown(), flush=True)
        if options.markdown:
            with options.markdown.open("a") as file:
                file.write(f"{found.markdown()}\n")
        if options.save:
            save(file_name(name, own, options), found.title, [found], made, options.save)


def _publishing(options: argparse.Namespace) -> list[str]:
    """The arguments that go with ``--publish``, as they were given."""
    return ["--publish", *["--quick"] * options.quick, *(["--save-to", str(options.save)] if options.save else [])]


def file_name(subject: str, own: dict[str, int], options: argparse.Namespace) -> str:
    """Name of the results of a run; runs with other settings do not replace each other."""
    parts = ["speed", subject, *(f"{name}-{number}" for name, number in own.items())]
    flags = {
        "memory": options.memory,
        "quick": options.quick,
        "partial": options.without,
        "fill": options.fill,
        "turns": options.turns,
    }
    return "-".join([*parts, *(name for name, is_set in flags.items() if is_set)])


def contenders_of(subject: Subject, without: Sequence[str] = (), fills: bool = False) -> dict[str, Contender]:
    """The contenders that can train a subject, without some."""
    every = {**(STATIC if subject.freeze else GRADUAL), **(FILLED if fills else {})}
    return {name: contender for name, contender in every.items() if name not in without}


def missing_tools(subjects: Sequence[Subject], without: Sequence[str] = ()) -> list[str]:
    """The contenders whose package is not installed; looked up before hours are spent on the others."""
    compared = {name for subject in subjects for name in contenders_of(subject, without)}
    return [name for name, package in PACKAGES.items() if name in compared and find_spec(package) is None]


def _as_limited(contender: str) -> str:
    """The contender with the same limit: filling ahead computes what a cold cache computes."""
    cold = "cache, cold"
    return next(name for name in (*STATIC, *GRADUAL) if name.endswith(cold)) if contender in FILLED else contender


def times(subject: Subject, options: argparse.Namespace) -> Table:
    """The table of ratios of one subject."""
    contenders = contenders_of(subject, options.without, options.fill)
    work = limits.count(subject)
    with tempfile.TemporaryDirectory() as folder:
        found = measure.rounds(subject, contenders, options.rounds, Path(folder), say, options.turns)
    base = next(iter(contenders))
    rows = {}
    for contender in contenders:
        ratio, limit = measure.ratios(found, contender, base), work.limit(_as_limited(contender)) / work.limit(base)
        rows[contender] = {
            "seconds": Figure([seconds[contender] for seconds in found], digits=1),
            f"times faster than {base}": ratio,
            "limit": limit,
            "reached": f"{ratio.median / limit:.0%}",
            "a step, times faster": measure.ratios(found, f"{contender}{measure.STEP}", f"{base}{measure.STEP}"),
            "a step, s": Figure([seconds[f"{contender}{measure.STEP}"] for seconds in found]),
            "the first step, s": Figure([seconds[f"{contender}{measure.FIRST_STEP}"] for seconds in found]),
        }
    frozen = "" if not subject.freeze else f" {work.frozen[0]:.0%} of the forward pass is frozen."
    turns = " in turns of an epoch" if options.turns else ""
    rounds = f"{options.rounds} round{'s' if options.rounds > 1 else ''}{turns}"
    about = f"{subject.sizes.capitalize()}, {rounds}, {options.threads} threads.{frozen}"
    pairs = [
        words.format(measure.ratios(found, one, other))
        for one, other, words in PAIRS
        if one in found[0] and other in found[0]
    ]
    return Table(subject.title, rows, about, pairs)


def memory_table(name: str, options: argparse.Namespace) -> Table:
    """What training keeps, predicted and measured, and the peak of a whole process."""
    subject = (QUICK if options.quick else FULL)[name]()
    rows, kept = {}, {}
    for contender in memory.CONTENDERS:
        predicted, measured, peak, process = in_a_process(name, contender, options.quick, options.threads)
        cells = [f"{p / 2**20:,.1f} / {m / 2**20:,.1f}" for p, m in zip(predicted, measured, strict=True)]
        cells += [f"{size / 2**20:,.0f}" for size in (peak, *process)]
        rows[contender] = dict(zip(_MEMORY_COLUMNS, cells, strict=True))
        kept[contender] = process
        say(f"{contender}: {rows[contender]}")
    about = (
        f"MiB, predicted / measured; batches of {subject.batch_size}, 1 round. A warm step is the last one. "
        "What is held after it is what remains once the allocator has returned what is free."
    )
    ours, ideal = kept[memory.OFFLOAD], kept[memory.IDEAL]
    # What a small model keeps is lost among what the allocator keeps.
    notes = []
    if all((*ours, *ideal)):
        ratios = f"{ours.after / ideal.after:.2f} after it, {ours.within / ideal.within:.2f} within it"
        notes = [f"a warm step with offload, against the model cut by hand: {ratios}"]
    return Table(f"Memory: {subject.title}", rows, about, notes)


def in_a_process(*arguments: object) -> _Memory:
    """Memory of one contender in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found: _Memory = pool.apply(_memory_of, arguments)
        return found


def _memory_of(name: str, contender: str, quick: bool, threads: int) -> _Memory:
    quiet(threads)
    # From the second epoch on the cache is filled, and weights that nothing needs leave soon after.
    subject = replace((QUICK if quick else FULL)[name](), batches=2, epochs=6)
    before = measure.peak_memory()
    start = memory.held_memory()
    with tempfile.TemporaryDirectory() as folder:
        measured, process = memory.measured(subject, contender, Path(folder))
    peak = measure.peak_memory() - before
    return memory.predicted(subject, contender), measured, peak, process.above(start)


def quiet(threads: int) -> None:
    """Silence warnings and logs, so that only tables and progress are printed."""
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)


def say(text: str) -> None:
    """Print progress to stderr; the tables go to stdout."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
