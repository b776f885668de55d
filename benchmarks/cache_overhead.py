"""Gain and cost of FrozenPrefixCache on one model: steps of full fine-tuning, frozen, cached, and the ideal.

    python benchmarks/cache_overhead.py [--quick] [--save]

All run in turn in one process, so that the ratios hold on a busy machine too; each figure is the median of the ratios
of the rounds, with the smallest and the largest. The ideal is a model of the layers that train alone, cut out by hand,
in a plain loop over hidden states in RAM. Bookkeeping is the time that the cache itself takes in a step: keys,
look-up and layout.

    python benchmarks/cache_overhead.py --sizes [--save]

measures instead the cache's own time in a step for models of three sizes, before the forward pass and in all. It hardly
depends on the width, so it matters most for small models. It takes minutes, and longer on busy cores: the steps of the
models wait for each other's threads.

    python benchmarks/cache_overhead.py --ranks 2

measures instead what the ranks of a sharded model take to agree on a decision.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.multiprocessing.spawn import spawn
from torch.utils.data import DataLoader, TensorDataset
from transformers import BertConfig, BertForSequenceClassification

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.saved_results import Figure, Provenance, Table, add_option, save
from lightning_freeze import LayerFreezing
from lightning_freeze.cache import frozen_prefix
from lightning_freeze.callbacks.frozen_prefix_cache import FrozenPrefixCache
from lightning_freeze.distributed import Ranks

BATCH, LENGTH, SKIPPED, STEPS = 8, 128, 3, 5
SIZES: dict[str, dict[str, Any]] = {
    "8 blocks, width 128": {
        "hidden_size": 128,
        "num_hidden_layers": 8,
        "num_attention_heads": 2,
        "intermediate_size": 512,
    },
    "MiniLM: 6 blocks, width 384": {
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
    },
    "BERT-base: 12 blocks, width 768": {},
}
SIZES_LENGTH, SIZES_STEPS = 96, 30  # tokens of a sample, and steps that count, where sizes are compared
EXCHANGES = 2000


class Classifier(LightningModule):
    """BERT with a head for two classes."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.bert = BertForSequenceClassification(config)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss: Tensor = self.bert(input_ids=batch[0], attention_mask=batch[1], labels=batch[2]).loss
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-5)


class Clock(Callback):
    """Times each batch, from the end of the one before."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._last = 0.0

    def on_train_batch_end(self, *_: Any) -> None:
        now = time.perf_counter()
        self.seconds.append(now - self._last)
        self._last = now


def data(steps: int, length: int = LENGTH) -> TensorDataset:
    """Random tokens; every batch is new within an epoch."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(1000, 30000, (steps * BATCH, length), generator=generator)
    return TensorDataset(tokens, torch.ones_like(tokens), tokens[:, 0] % 2)


def fit(module: Classifier, steps: int, *callbacks: Callback, length: int = LENGTH) -> float:
    """Seconds of a step in ``Trainer.fit``, without the first ones, which are watched and checked."""
    clock = Clock()
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[*callbacks, clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(data(steps, length), BATCH))
    return statistics.median(clock.seconds[SKIPPED:])


def ideal(module: Classifier, frozen: int, steps: int) -> float:
    """Seconds of a step of the layers that train alone, fed from RAM."""
    bert: Any = module.bert.bert
    layers = list(bert.encoder.layer)[frozen:]
    parts = [*layers, bert.pooler, module.bert.classifier]
    for part in parts:
        part.requires_grad_(True).train()
    optimizer = torch.optim.AdamW([p for part in parts for p in part.parameters()], lr=1e-5)
    hidden = torch.randn(BATCH, LENGTH, module.bert.config.hidden_size)
    labels = torch.arange(BATCH) % 2
    seconds = []
    for _ in range(steps):
        began = time.perf_counter()
        x = hidden
        for layer in layers:
            x = layer(x)
        loss = torch.nn.functional.cross_entropy(module.bert.classifier(bert.pooler(x)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[SKIPPED:])


class Bookkeeping:
    """Measures the time of the cache around the forward pass, in CPU seconds of this thread.

    Attributes:
        before: Seconds before the forward pass, of each step.
        seconds: Seconds before and after it.
    """

    def __init__(self) -> None:
        self.before: list[float] = []
        self.seconds: list[float] = []
        for name in ("_before", "_after"):
            setattr(
                frozen_prefix.FrozenPrefix,
                name,
                self._timed(getattr(frozen_prefix.FrozenPrefix, name), name == "_before"),
            )

    def _timed(self, run: Callable[..., Any], begins: bool) -> Callable[..., Any]:
        def timed(*args: Any) -> Any:
            began = time.thread_time()
            result = run(*args)
            took = time.thread_time() - began
            if begins:
                self.before.append(took)
                self.seconds.append(took)
            else:
                self.seconds[-1] += took
            return result

        return timed

    def clear(self) -> None:
        """Forget the steps so far."""
        self.before.clear()
        self.seconds.clear()


def main() -> None:
    """Measure in turn and print the ratios."""
    parser = argparse.ArgumentParser(description="What FrozenPrefixCache gains and costs.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--steps", type=int, help=f"steps of a run: {SKIPPED + STEPS} by default, {SKIPPED + SIZES_STEPS} with --sizes"
    )
    parser.add_argument("--quick", action="store_true", help="a small model instead of BERT-base")
    parser.add_argument(
        "--ranks", type=int, default=0, help="measure only what this many processes take to agree on a decision"
    )
    parser.add_argument("--sizes", action="store_true", help="measure only the cache's own time, for three sizes")
    add_option(parser)
    arguments = parser.parse_args()
    if arguments.ranks:
        print(exchange_table(arguments.ranks, arguments.rounds).markdown())
        return
    made = Provenance.now("xxhash")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    if arguments.sizes:
        sizes_table = own_time_table(arguments.rounds, arguments.steps or SKIPPED + SIZES_STEPS)
        print(sizes_table.markdown())
        if arguments.save:
            save("cache_overhead-sizes", "The cache's own time in a step", [sizes_table], made, arguments.save)
        return
    sizes: dict[str, Any] = {"hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 512}
    config = BertConfig(**sizes) if arguments.quick else BertConfig()
    frozen = config.num_hidden_layers * 3 // 4
    steps = arguments.steps or SKIPPED + STEPS
    module, whole, cut = Classifier(config), Classifier(config), Classifier(config)
    cache = FrozenPrefixCache(verbose=False)
    book = Bookkeeping()

    def freezing() -> LayerFreezing:
        return LayerFreezing("75%", verbose=False)

    fit(module, steps, freezing(), cache)  # fills it
    cases: dict[str, Callable[[], float]] = {
        "full fine-tuning": lambda: fit(whole, steps),
        "frozen": lambda: fit(module, steps, freezing()),
        "frozen and cached": lambda: fit(module, steps, freezing(), cache),
        "ideal": lambda: ideal(cut, frozen, steps),
    }
    times: dict[str, list[float]] = {name: [] for name in cases}
    kept: list[float] = []
    for number in range(arguments.rounds):
        for name, run in cases.items():
            book.clear()
            times[name].append(run())
            if name == "frozen and cached":
                kept.append(statistics.median(book.seconds[SKIPPED:]))
        last = {name: round(values[-1], 3) for name, values in times.items()}
        print(f"round {number + 1}: {last}", file=sys.stderr, flush=True)
    cached = times["frozen and cached"]
    rows = {
        "full fine-tuning / frozen": ratios(times["full fine-tuning"], times["frozen"]),
        "full fine-tuning / frozen and cached": ratios(times["full fine-tuning"], cached),
        "frozen and cached / ideal": ratios(cached, times["ideal"]),
        "bookkeeping in a cached step, ms": Figure([1e3 * seconds for seconds in kept]),
        "bookkeeping, % of a cached step": ratios([100 * seconds for seconds in kept], cached),
    }
    model = "BERT, small" if arguments.quick else "BERT-base"
    table = Table(
        f"{model}, 75% frozen, batch {BATCH} x {LENGTH}",
        {name: {"median (smallest-largest)": figure} for name, figure in rows.items()},
        f"CPU. Threads: {torch.get_num_threads()}, rounds: {arguments.rounds}, steps in each: {steps - SKIPPED}.",
        [f"hit rate {cache.hit_rate:.0%}"],
    )
    print(table.markdown())
    if arguments.save:
        name = "cache_overhead-quick" if arguments.quick else "cache_overhead"
        save(name, "Gain and cost of FrozenPrefixCache", [table], made, arguments.save)


def own_time_table(rounds: int, steps: int) -> Table:
    """Measure the cache's own time in a cached step for each size, the sizes in turn in each round."""
    book = Bookkeeping()
    modules = {name: Classifier(BertConfig(**sizes)) for name, sizes in SIZES.items()}
    caches = {name: FrozenPrefixCache(verbose=False) for name in SIZES}
    before, own, whole = ({name: list[float]() for name in SIZES} for _ in range(3))

    def cached(name: str) -> float:
        freezing = LayerFreezing("75%", verbose=False)
        return fit(modules[name], steps, freezing, caches[name], length=SIZES_LENGTH)

    for name in SIZES:
        cached(name)  # fills it
    for number in range(rounds):
        for name in SIZES:
            book.clear()
            whole[name].append(cached(name))
            before[name].append(statistics.median(book.before[SKIPPED:]))
            own[name].append(statistics.median(book.seconds[SKIPPED:]))
        last = {name: f"{1e3 * own[name][-1]:.2f} of {1e3 * whole[name][-1]:.1f} ms" for name in SIZES}
        print(f"round {number + 1}: {last}", file=sys.stderr, flush=True)
    rows = {
        name: {
            "before the pass, ms": Figure([1e3 * seconds for seconds in before[name]]),
            "in all, ms": Figure([1e3 * seconds for seconds in own[name]]),
            "cached step, ms": Figure([1e3 * seconds for seconds in whole[name]], 1),
            "in all, % of the step": ratios([100 * seconds for seconds in own[name]], whole[name]),
        }
        for name in SIZES
    }
    about = f"CPU. Threads: {torch.get_num_threads()}, rounds: {rounds}, steps in each: {steps - SKIPPED}."
    hit_rates = ", ".join(f"{cache.hit_rate:.0%}" for cache in caches.values())
    title = f"The cache's own time in a step: BERT, 75% frozen, batch {BATCH} x {SIZES_LENGTH}"
    return Table(title, rows, about, [f"medians of CPU time of the main thread; hit rates {hit_rates}"])


def exchange_table(count: int, rounds: int) -> Table:
    """Measure the exchange that a cached step of a sharded model makes twice for each tower."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(_time_exchanges, (count, folder, rounds), nprocs=count)
        taken = json.loads(Path(folder, "seconds.json").read_text())
    figure = Figure([1e6 * seconds for seconds in taken])
    return Table(
        f"One exchange between {count} processes (gloo)",
        {"one exchange, µs": {"median (smallest-largest)": figure}},
        f"CPU. Threads: 1, rounds: {rounds}, exchanges in each: {EXCHANGES}.",
        ["a step that skips makes two, one that runs four or more"],
    )


def _time_exchanges(rank: int, count: int, folder: str, rounds: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=count)
    ranks, medians = Ranks(torch.device("cpu")), []
    for _ in range(rounds):
        taken = []
        for _ in range(EXCHANGES):
            began = time.perf_counter()
            ranks.highest(rank)
            taken.append(time.perf_counter() - began)
        medians.append(statistics.median(taken))
    if rank == 0:
        Path(folder, "seconds.json").write_text(json.dumps(medians))
    dist.destroy_process_group()


def ratios(above: list[float], below: list[float]) -> Figure:
    """The quotients of two measurements, round by round."""
    return Figure([a / b for a, b in zip(above, below, strict=True)])


if __name__ == "__main__":
    main()
