"""What the callbacks cost: the same fit with LayerFreezing, and with the same layers frozen by hand.

    python benchmarks/overhead.py

Both fits run side by side in one process, in turn; the figure is the median of the ratios of their times, with the
quartiles. The model is a BERT of four layers from its config, on random tokens: the callbacks' work for each batch does
not depend on the model's width, so a small model shows it at its largest.
"""

import argparse
import logging
import statistics
import time
import warnings
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader, TensorDataset
from transformers import BertConfig, BertForSequenceClassification

from lightning_freeze import DiscriminativeLR, GradualUnfreezing, LayerFreezing, LayerStack


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
    """Time of a fit, from its first batch to its last."""
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
    """Takes the time of the training loop."""

    def on_train_start(self, *_: Any) -> None:
        self.began = time.perf_counter()

    def on_train_end(self, *_: Any) -> None:
        self.seconds = time.perf_counter() - self.began


def main() -> None:
    """Measure in turn and print the ratios."""
    parser = argparse.ArgumentParser(description="What the callbacks cost.")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batches", type=int, default=60)
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    cases = {
        "LayerFreezing": lambda: [LayerFreezing("embeddings,:2", frozen_eval=False, verbose=False)],
        "LayerFreezing + DiscriminativeLR": lambda: [
            LayerFreezing("embeddings,:2", frozen_eval=False, verbose=False),
            DiscriminativeLR(verbose=False),
        ],
        "GradualUnfreezing, one phase of the same layers": lambda: [
            GradualUnfreezing(start="2:,head", stop="2", frozen_eval=False, verbose=False)
        ],
    }
    ratios: dict[str, list[float]] = {name: [] for name in cases}
    seconds(arguments.batches, True)  # warm-up
    for _ in range(arguments.rounds):
        for name, make in cases.items():
            by_hand = seconds(arguments.batches, True)
            ratios[name].append(seconds(arguments.batches, False, *make()) / by_hand)
    print(f"time with callbacks / time with requires_grad set by hand, {arguments.rounds} rounds")
    for name, values in ratios.items():
        low, middle, high = statistics.quantiles(values, n=4)
        print(f"  {name}: {middle:.3f} (quartiles {low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
