"""Cost of the callbacks: the same fit with callbacks, and with the same layers frozen by hand.

    python benchmarks/overhead.py [--save]

Both fits run side by side in one process, in turn; the figure is the median of the ratios of their times, with the
smallest and the largest, and the quartiles beside it. Four callbacks are measured beside one, because work that belongs
to a run should be done once whatever their number. The model is a BERT of four layers from its config, on random
tokens: the callbacks' work for each batch does not depend on the model's width, so a small model shows it at its
largest.

The second table is the cost of training other layers every 20 steps under DDP, which wraps the model again: two
processes on this machine fit a model of MiniLM's size. The figure is the extra time of the two steps after a rotation,
compared with the median of the other 18, as a share of 20 steps. The row without a rotation shows how much of it is
noise. With ``--windows 0`` it is left out.
"""

import argparse
import json
import logging
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader, TensorDataset
from transformers import BertConfig, BertForSequenceClassification

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.saved_results import Cell, Figure, Provenance, Table, add_option, save
from lightning_freeze import LISA, DiscriminativeLR, FreezeReport, GradualUnfreezing, LayerFreezing, LayerStack

INTERVAL = 20  # optimizer steps between two rotations


SMALL = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 512}
MINILM = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}


class Classifier(LightningModule):
    """A BERT; ``by_hand`` freezes the embeddings and the first two of its layers."""

    def __init__(self, by_hand: bool, vocab_size: int = 1000, **sizes: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        config = BertConfig(vocab_size=vocab_size, **(sizes or SMALL))
        self.bert = BertForSequenceClassification(config)
        if by_hand:
            for parameter in LayerStack(self).select("embeddings,:2").parameters:
                parameter.requires_grad_(False)

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss: torch.Tensor = self.bert(input_ids=batch[0], labels=batch[1]).loss
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-4)


def seconds(batches: int, by_hand: bool, *callbacks: Callback) -> float:
    """Seconds of a fit, from its first batch to its last."""
    trainer = Trainer(
        max_epochs=1,
        callbacks=[*callbacks, clock := Clock()],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    tokens = torch.randint(0, 1000, (batches * 8, 32), generator=torch.Generator().manual_seed(0))
    trainer.fit(Classifier(by_hand), DataLoader(TensorDataset(tokens, tokens.sum(1) % 2), batch_size=8))
    return clock.seconds


class Clock(Callback):
    """Measures the time of the training loop."""

    def on_train_start(self, *_: Any) -> None:
        self.began = time.perf_counter()

    def on_train_end(self, *_: Any) -> None:
        self.seconds = time.perf_counter() - self.began


class StepTimes(Callback):
    """Writes the seconds of each step of the first rank to a file; the first of the callbacks."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.begun: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.begun.append(time.perf_counter())

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            ends = [*self.begun[1:], time.perf_counter()]
            self.path.write_text(json.dumps([end - begin for begin, end in zip(self.begun, ends, strict=True)]))


def step_times(steps: int, interval: int) -> list[float]:
    """Seconds of each step of a fit of two processes under DDP, in which LISA draws again every ``interval`` steps."""
    with tempfile.TemporaryDirectory() as folder:
        times = Path(folder) / "times.json"
        trainer = Trainer(
            max_steps=steps,
            callbacks=[StepTimes(times), LISA(2, interval=interval, verbose=False)],
            accelerator="cpu",
            devices=2,
            strategy=DDPStrategy(process_group_backend="gloo", start_method="fork"),
            use_distributed_sampler=False,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        tokens = torch.randint(0, 30522, (steps * 16, 64), generator=torch.Generator().manual_seed(0))
        module = Classifier(False, vocab_size=30522, **MINILM)
        trainer.fit(module, DataLoader(TensorDataset(tokens, tokens.sum(1) % 2), batch_size=16))
        seconds: list[float] = json.loads(times.read_text())
    return seconds


def rotation_shares(times: Sequence[float]) -> list[float]:
    """For each rotation its extra time as a share of ``INTERVAL`` steps.

    Args:
        times: The seconds of each step. The first window has no rotation and is a warm-up.
    """
    windows = [times[begin : begin + INTERVAL] for begin in range(INTERVAL, len(times), INTERVAL)]
    usual = [statistics.median(window[2:]) for window in windows]
    # DDP puts its buckets in order after the first step, so the second one is not a usual step either.
    return [(sum(window[:2]) - 2 * step) / (INTERVAL * step) for window, step in zip(windows, usual, strict=True)]


def rotation_table(windows: int) -> Table:
    """What a rotation costs under DDP, beside the same windows without one."""
    steps = INTERVAL * (windows + 1)
    cases = {f"LISA draws again every {INTERVAL} steps": INTERVAL, "LISA never draws again": steps}
    rows: dict[str, dict[str, Cell]] = {}
    for name, interval in cases.items():
        shares = rotation_shares(step_times(steps, interval))
        rows[name] = {
            f"extra time / time of {INTERVAL} steps": Figure(shares, digits=4),
            "quartiles": quartiles(shares),
        }
    about = f"Two processes under DDP (gloo) on one machine, a BERT of MiniLM's size. Windows: {windows}."
    return Table("Cost of a rotation under DDP", rows, about)


def freezing(layers: str = "embeddings,:2") -> LayerFreezing:
    return LayerFreezing(layers, frozen_eval=False, verbose=False)


def one_phase() -> GradualUnfreezing:
    """The same layers as those of :func:`freezing`, as a schedule."""
    return GradualUnfreezing(start="2:,head", stop="2", frozen_eval=False, verbose=False)


def unwritten_report() -> FreezeReport:
    """Measures as by default. The page is written once an epoch, so its cost does not belong to a batch."""
    report = FreezeReport(verbose=False)
    report._write = lambda is_last=False: None  # type: ignore[method-assign]
    return report


#: What is compared with layers frozen by hand.
CASES: dict[str, Callable[[], list[Callback]]] = {
    "one callback: LayerFreezing": lambda: [freezing()],
    "LayerFreezing + DiscriminativeLR": lambda: [freezing(), DiscriminativeLR(verbose=False)],
    "GradualUnfreezing, one phase of the same layers": lambda: [one_phase()],
    "LayerFreezing + FreezeReport, without writing the page": lambda: [freezing(), unwritten_report()],
    "four callbacks: LayerFreezing, GradualUnfreezing, DiscriminativeLR(1.0), LayerFreezing": lambda: [
        freezing(),
        one_phase(),
        DiscriminativeLR(1.0, verbose=False),
        freezing("embeddings"),
    ],
}


def quartiles(values: Sequence[float]) -> str:
    """The first and the third quartile; nothing for a single round."""
    if len(values) < 2:
        return "-"
    low, _, high = statistics.quantiles(values, n=4)
    return f"{low:.4f} to {high:.4f}"


def callbacks_table(rounds: int, batches: int) -> Table:
    """Time with callbacks divided by that with ``requires_grad`` set by hand, measured in turn."""
    ratios: dict[str, list[float]] = {name: [] for name in CASES}
    seconds(batches, True)  # warm-up
    for _ in range(rounds):
        for name, make in CASES.items():
            by_hand = seconds(batches, True)
            ratios[name].append(seconds(batches, False, *make()) / by_hand)
    rows: dict[str, dict[str, Cell]] = {
        name: {"time / time by hand": Figure(values, digits=3), "quartiles": quartiles(values)}
        for name, values in ratios.items()
    }
    about = (
        f"Time with callbacks divided by that with requires_grad set by hand. Rounds: {rounds}, batches in "
        f"each: {batches}, threads: {torch.get_num_threads()}."
    )
    return Table("Cost of the callbacks", rows, about)


def main() -> None:
    """Measure in turn and print the ratios."""
    parser = argparse.ArgumentParser(description="What the callbacks cost.")
    parser.add_argument("--rounds", type=int, default=15, help="of the first table; 0 to leave it out")
    parser.add_argument("--batches", type=int, default=60)
    parser.add_argument("--windows", type=int, default=15, help="rotations under DDP; 0 for none")
    add_option(parser)
    arguments = parser.parse_args()
    made = Provenance.now()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    tables = [callbacks_table(arguments.rounds, arguments.batches)] if arguments.rounds else []
    if arguments.windows:
        tables.append(rotation_table(arguments.windows))
    if not tables:
        parser.error("--rounds 0 and --windows 0 leave nothing to measure")
    print("\n\n".join(table.markdown() for table in tables))
    if arguments.save:
        save("overhead", "Cost of the callbacks", tables, made, arguments.save)


if __name__ == "__main__":
    main()
