"""Cost of the callbacks: the same fit with callbacks, and with the same layers frozen by hand.

    python benchmarks/overhead.py [--save]

Both fits run side by side in one process, in turn; the figure is the median of the ratios of their times, with the
smallest and the largest, and the quartiles beside it. Four callbacks are measured beside one, because work that belongs
to a run should be done once whatever their number. The model is a BERT of four layers from its config, on random
tokens: the callbacks' work for each batch does not depend on the model's width, so a small model shows it at its
largest.
"""

import argparse
import logging
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader, TensorDataset
from transformers import BertConfig, BertForSequenceClassification

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.saved_results import Cell, Figure, Provenance, Table, add_option, save
from lightning_freeze import DiscriminativeLR, FreezeReport, GradualUnfreezing, LayerFreezing, LayerStack


class Classifier(LightningModule):
    """A BERT of four layers; ``by_hand`` freezes the embeddings and the first two."""

    def __init__(self, by_hand: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        config = BertConfig(
            hidden_size=128, num_hidden_layers=4, num_attention_heads=2, intermediate_size=512, vocab_size=1000
        )
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
    return f"{low:.3f} to {high:.3f}"


def main() -> None:
    """Measure in turn and print the ratios."""
    parser = argparse.ArgumentParser(description="What the callbacks cost.")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batches", type=int, default=60)
    add_option(parser)
    arguments = parser.parse_args()
    made = Provenance.now()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    ratios: dict[str, list[float]] = {name: [] for name in CASES}
    seconds(arguments.batches, True)  # warm-up
    for _ in range(arguments.rounds):
        for name, make in CASES.items():
            by_hand = seconds(arguments.batches, True)
            ratios[name].append(seconds(arguments.batches, False, *make()) / by_hand)
    rows: dict[str, dict[str, Cell]] = {
        name: {"time / time by hand": Figure(values, digits=3), "quartiles": quartiles(values)}
        for name, values in ratios.items()
    }
    about = (
        f"Time with callbacks divided by that with requires_grad set by hand. Rounds: {arguments.rounds}, batches in "
        f"each: {arguments.batches}, threads: {torch.get_num_threads()}."
    )
    table = Table("Cost of the callbacks", rows, about)
    print(table.markdown())
    if arguments.save:
        save("overhead", table.title, [table], made, arguments.save)


if __name__ == "__main__":
    main()
