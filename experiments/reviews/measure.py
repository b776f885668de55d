"""Measure every config of this folder with several seeds, and write the table of the README.

    python experiments/reviews/measure.py --seeds 5

Call it from the repository root, after ``prepare.py``. Results go to ``results.csv`` beside this file, one row per
config and seed, as soon as each is finished; runs that are in there already are skipped, so it may be interrupted and
called again. A row whose config has changed since is measured anew. The seed decides both the split of the reviews into
training, validation and test and everything that is random in training, so the spread covers both, and all configs see
the same five splits.
"""

import argparse
import csv
import hashlib
import platform
import shutil
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning as L
import torch

from lightning_freeze.cli.command_line import FreezeCLI

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results.csv"
README = HERE / "README.md"
RUNS = Path("runs/reviews")  # as base.yaml has it
COLUMNS = ["config", "seed", "accuracy", "majority", "trainable_share", "fingerprint"]
ORDER = ["head_only", "static", "full", "discriminative", "gradual", "plateau"]
BEGIN, END = "<!-- results: written by measure.py -->\n", "<!-- end of results -->"

Row = dict[str, str]


class Probe(L.Callback):
    """Takes the mean share of parameters that were trained in a fit."""

    def __init__(self) -> None:
        self.shares: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        sizes = [(p.numel(), p.requires_grad) for p in pl_module.parameters()]
        self.shares.append(sum(size for size, trained in sizes if trained) / sum(size for size, _ in sizes))


def main() -> None:
    """Run what is missing, then write the table."""
    parser = argparse.ArgumentParser(description="Measure the review experiments.")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, counted from 0 (default: 5)")
    parser.add_argument("--configs", nargs="+", choices=ORDER, default=ORDER, help="which configs (default: all)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the results are kept")
    arguments = parser.parse_args()
    del sys.argv[1:]  # they were ours; LightningCLI warns of arguments that it is not meant to read
    rows = read_rows(arguments.results)
    # Seed by seed, so that an interrupted measurement still compares all configs on the same splits.
    for seed in range(arguments.seeds):
        for config in arguments.configs:
            if is_measured(rows, config, seed):
                print(f"{config}, seed {seed}: already measured")
                continue
            print(f"{config}, seed {seed}: running", flush=True)
            rows = [row for row in rows if (row["config"], row["seed"]) != (config, str(seed))]
            rows.append(measure(config, seed))
            write_atomically(arguments.results, to_csv(rows))
    table = to_markdown(rows)
    if arguments.results == RESULTS:
        put_into_readme(table)
    print(table)


def measure(config: str, seed: int) -> Row:
    """Train one config with one seed and test its best checkpoint, as `fit` and `test` would."""
    run = f"{config}-seed{seed}"
    shutil.rmtree(RUNS / run, ignore_errors=True)  # what an interrupted measurement left
    probe = Probe()
    cli = FreezeCLI(
        args=[
            "fit",
            f"--config={config_path(config)}",
            f"--seed_everything={seed}",
            f"--data.split_seed={seed}",
            f"--trainer.logger.init_args.version={run}",
            "--trainer.enable_progress_bar=false",
            "--trainer.enable_model_summary=false",
            "--report=false",
        ],
        trainer_defaults={"callbacks": [probe]},
    )
    (tested,) = cli.trainer.test(cli.model, cli.datamodule, ckpt_path="best", verbose=False)
    row = {
        "config": config,
        "seed": str(seed),
        "accuracy": f"{tested['test_accuracy']:.4f}",
        "majority": f"{cli.datamodule.majority:.4f}",
        "trainable_share": f"{statistics.fmean(probe.shares):.4f}",
        "fingerprint": fingerprint(config),
    }
    print(", ".join(f"{name} {row[name]}" for name in COLUMNS[2:5]), flush=True)
    return row


def config_path(config: str) -> Path:
    """Path of a config by its name."""
    return HERE / f"{config}.yaml"


def fingerprint(config: str) -> str:
    """What a result depends on: the config and the base that it shares with the others."""
    return hashlib.sha256(config_path("base").read_bytes() + config_path(config).read_bytes()).hexdigest()[:12]


def is_measured(rows: Iterable[Row], config: str, seed: int) -> bool:
    """Whether a config has a result with this seed, and has not changed since."""
    wanted = (config, str(seed), fingerprint(config))
    return any((row["config"], row["seed"], row["fingerprint"]) == wanted for row in rows)


def read_rows(path: Path) -> list[Row]:
    """Results so far."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def to_csv(rows: Iterable[Row]) -> str:
    """Results as CSV, in a fixed order."""
    ordered = sorted(rows, key=lambda row: (ORDER.index(row["config"]), int(row["seed"])))
    return "\n".join([",".join(COLUMNS), *(",".join(row[name] for name in COLUMNS) for row in ordered)]) + "\n"


def to_markdown(rows: list[Row]) -> str:
    """The table: mean and standard deviation over the seeds."""
    lines = [
        "| config | test accuracy | over majority class | trained on average | seeds |",
        "|---|---|---|---|---|",
    ]
    for config in ORDER:
        mine = [row for row in rows if row["config"] == config]
        if not mine:
            continue
        column = {name: [float(row[name]) for row in mine] for name in COLUMNS[2:5]}
        gain = [a - m for a, m in zip(column["accuracy"], column["majority"], strict=True)]
        lines.append(
            f"| [{config}]({config}.yaml) | {spread(column['accuracy'], 3)} | {spread(gain, 3)} "
            f"| {statistics.fmean(column['trainable_share']):.0%} | {len(mine)} |"
        )
    lines += [
        "",
        f"Mean ± standard deviation over seeds. CPU ({platform.machine()}), PyTorch {torch.__version__.split('+')[0]}, "
        f"Lightning {L.__version__}, Python {platform.python_version()}.",
    ]
    return "\n".join(lines) + "\n"


def spread(values: list[float], digits: int) -> str:
    """Mean ± standard deviation; the mean alone of a single value."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def put_into_readme(table: str) -> None:
    """Replace the table in the README."""
    text = README.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        sys.exit(f"error: {README} lacks the lines {BEGIN.strip()!r} and {END!r}, between which the table goes")
    before, rest = text.split(BEGIN)
    write_atomically(README, before + BEGIN + "\n" + table + "\n" + END + rest.split(END)[1])


def write_atomically(path: Path, text: str) -> None:
    """Write a file in one step, so that an interruption leaves the old one."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


if __name__ == "__main__":
    main()
