"""Common beliefs about freezing, measured on small real models; docs/guides/beliefs.md discusses the results.

    python experiments/reviews/prepare.py     # once: the encoder and the reviews
    python benchmarks/beliefs.py --save       # a few minutes on two cores

Costs are counted in floating point operations (``torch.utils.flop_counter``), which do not depend on the machine or on
what else runs on it. Accuracy is that of short runs on part of the reviews.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForSequenceClassification, AutoTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.saved_results import Cell, Figure, Provenance, Table, add_option, save
from lightning_freeze import LayerFreezing

DATA = Path(__file__).resolve().parents[1] / "experiments" / "reviews" / "data"
BATCH, TOKENS, LABELS = 16, 32, 2
TRAIN, TEST, EPOCHS = 480, 400, 2
BLOCKS = 6
#: What is frozen in the comparison of places, by name.
PLACES = {
    "nothing": None,
    "embeddings and the first four blocks": "embeddings,:4",
    "embeddings and the last four blocks": "embeddings,2:",
    "embeddings and all blocks": "embeddings,:",
}


class Classifier(LightningModule):
    """MiniLM with a new classifier.

    Args:
        lr: Learning rate of AdamW.
    """

    def __init__(self, lr: float = 1e-4) -> None:
        super().__init__()
        self.network = AutoModelForSequenceClassification.from_pretrained(DATA / "minilm", num_labels=LABELS)
        self.network.train()  # from_pretrained leaves it in eval mode
        self.lr = lr

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return self.network(input_ids=tokens, attention_mask=mask).logits

    def training_step(self, batch: Sequence[Tensor], batch_idx: int = 0) -> Tensor:
        tokens, mask, labels = batch
        return nn.functional.cross_entropy(self(tokens, mask), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


class Normed(LightningModule):
    """Two convolutions with BatchNorm, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU()
        )
        self.head = nn.Linear(8, LABELS)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images).mean(dim=(2, 3)))

    def training_step(self, batch: Sequence[Tensor], batch_idx: int = 0) -> Tensor:
        images, labels = batch
        return nn.functional.cross_entropy(self(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def main() -> None:
    """Measure everything, print the tables, and save them if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--seeds", type=int, default=3, help="runs of each set-up where accuracy is measured; 0 for none"
    )
    add_option(parser)
    options = parser.parse_args()
    made = Provenance.now()
    tables = []
    measures = [gradients, cost_by_share, zeroed_gradients, batch_norm]
    if options.seeds:
        measures.append(lambda: places(options.seeds))
    for measure in measures:
        tables.append(measure())
        print(tables[-1].markdown(), flush=True)
    if options.save:
        print(save("beliefs", "Beliefs about freezing", tables, made, options.save))


def gradients() -> Table:
    """Whether frozen layers get gradients, and whether backward runs through them."""
    rows: dict[str, dict[str, Cell]] = {}
    for name, layers in {
        "nothing": None,
        "embeddings and the first four blocks": "embeddings,:4",
        "the first four blocks, without the embeddings": ":4",
        "embeddings and the last four blocks": "embeddings,2:",
    }.items():
        module = frozen(Classifier(), layers)
        forward, backward = operations(module)
        held = [parameter for parameter in module.parameters() if not parameter.requires_grad]
        rows[name] = {
            "frozen parameters, millions": sum(p.numel() for p in held) / 1e6,
            "of them with a gradient": str(sum(p.numel() for p in held if p.grad is not None)),
            "backward, in forward passes": backward / forward,
        }
    return Table("Do frozen layers still get gradients?", rows, _shapes())


def cost_by_share() -> Table:
    """Operations of a step by the number of frozen blocks, without and with a cached prefix."""
    full = sum(operations(frozen(Classifier(), None)))
    rows: dict[str, dict[str, Cell]] = {}
    for count in range(BLOCKS + 1):
        module = frozen(Classifier(), f"embeddings,:{count}" if count else "embeddings")
        forward, backward = operations(module)
        cached = backward + forward * (BLOCKS - count) / BLOCKS
        rows[f"{count} of {BLOCKS}"] = {
            "times as cheap": full / (forward + backward),
            "with the frozen prefix cached": full / cached if count < BLOCKS else "only the head is left",
        }
    return Table(
        "Is a step with 80% of the blocks frozen five times cheaper?",
        rows,
        f"{_shapes()} The embeddings are frozen too.",
        ["All blocks have the same number of operations; a cached prefix leaves out theirs in the forward pass."],
    )


def zeroed_gradients() -> Table:
    """How far weights move that have a gradient of zero, or none."""
    rows: dict[str, dict[str, Cell]] = {}
    for name, freezes in {"gradients set to zero": False, "requires_grad=False": True}.items():
        moved = []
        for decay, momentum_first in ((0.01, False), (0.0, True)):
            torch.manual_seed(0)
            layer = nn.Linear(16, 16)
            optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-3, weight_decay=decay)
            if momentum_first:
                layer(torch.randn(8, 16)).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
            layer.requires_grad_(not freezes)
            before = layer.weight.detach().clone()
            for _ in range(100):
                for parameter in layer.parameters():
                    parameter.grad = None if freezes else torch.zeros_like(parameter)
                optimizer.step()
            moved.append(float((layer.weight.detach() - before).abs().max() / before.abs().max()))
        rows[name] = {"with weight decay": f"{moved[0]:.1e}", "after one real step, no decay": f"{moved[1]:.1e}"}
    about = "Largest movement of a weight in 100 steps of AdamW at 1e-3, relative to the largest weight."
    return Table("Is a gradient of zero the same as freezing?", rows, about)


def batch_norm() -> Table:
    """What happens to the statistics of a frozen BatchNorm."""
    rows: dict[str, dict[str, Cell]] = {}
    for name, callbacks in {
        "requires_grad=False alone": [],
        "LayerFreezing": [LayerFreezing("body", groups={"body": ["body"], "head": ["head"]}, verbose=False)],
    }.items():
        seed_everything(0, verbose=False)
        module = Normed()
        module.body.requires_grad_(False)
        probe = torch.randn(32, 1, 12, 12)
        before, statistics = _features(module, probe), module.body[1].running_mean.clone()
        images = 2 * torch.randn(320, 1, 12, 12) + 1  # another mean and spread than the network has seen
        fit(module, TensorDataset(images, torch.arange(320) % LABELS), 2, callbacks)
        rows[name] = {
            "running mean moved by": float((module.body[1].running_mean - statistics).abs().max()),
            "features of the same images moved by": float((_features(module, probe) - before).abs().max()),
        }
    about = "Two convolutions with BatchNorm, frozen; 20 batches of images with another mean and spread."
    return Table("Does requires_grad=False freeze BatchNorm?", rows, about)


def places(seeds: int) -> Table:
    """Accuracy and cost by which blocks are frozen."""
    train, test = reviews()
    full = sum(operations(frozen(Classifier(), None)))
    rows: dict[str, dict[str, Cell]] = {}
    for name, layers in PLACES.items():
        cheaper = full / sum(operations(frozen(Classifier(), layers)))
        accuracies = []
        for seed in range(seeds):
            seed_everything(seed, verbose=False)
            module = Classifier()
            fit(module, train, EPOCHS, [] if layers is None else [LayerFreezing(layers, verbose=False)])
            accuracies.append(accuracy(module, test))
        rows[name] = {"test accuracy": Figure(accuracies, digits=3), "times as cheap": cheaper}
    about = (
        f"MiniLM with a new classifier, {TRAIN} sentences of reviews, {EPOCHS} epochs of batches of {BATCH}, AdamW at "
        f"1e-4; median of {seeds} seeds with the smallest and the largest, on {TEST} sentences of other reviews."
    )
    return Table("Always the early layers? Is more frozen better?", rows, about)


def frozen(module: Classifier, layers: str | None) -> Classifier:
    """The module as ``LayerFreezing`` holds it in a fit, without the fit."""
    from lightning_freeze import LayerStack

    if layers is not None:
        for parameter in LayerStack(module).select(layers).parameters:
            parameter.requires_grad_(False)
    return module


def operations(module: Classifier) -> tuple[int, int]:
    """Floating point operations of the forward and of the backward pass of one batch."""
    torch.manual_seed(0)
    batch = (
        torch.randint(1000, 20000, (BATCH, TOKENS)),
        torch.ones(BATCH, TOKENS, dtype=torch.long),
        torch.arange(BATCH) % LABELS,
    )
    with FlopCounterMode(display=False) as forward:
        loss = module.training_step(batch)
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    return forward.get_total_flops(), backward.get_total_flops()


def reviews() -> tuple[TensorDataset, TensorDataset]:
    """Part of the reviews as token ids, masks and labels; the test sentences are of other reviews."""
    with (DATA / "reviews.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    names = list(dict.fromkeys(row["review"] for row in rows))
    held_out = set(names[::4])
    parts = [[r for r in rows if r["review"] not in held_out], [r for r in rows if r["review"] in held_out]]
    tokenizer = AutoTokenizer.from_pretrained(DATA / "minilm")
    sets = []
    for part, count in zip(parts, (TRAIN, TEST), strict=True):
        order = torch.randperm(len(part), generator=torch.Generator().manual_seed(0))[:count].tolist()
        chosen = [part[index] for index in order]
        encoded = tokenizer(
            [row["text"] for row in chosen],
            padding="max_length",
            truncation=True,
            max_length=TOKENS,
            return_tensors="pt",
        )
        labels = torch.tensor([int(row["label"] == "positive") for row in chosen])
        sets.append(TensorDataset(encoded["input_ids"], encoded["attention_mask"], labels))
    return sets[0], sets[1]


def fit(module: LightningModule, data: TensorDataset, epochs: int, callbacks: list[LayerFreezing]) -> None:
    """Train without any output."""
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(data, batch_size=BATCH, shuffle=True))


@torch.no_grad()
def accuracy(module: Classifier, data: TensorDataset) -> float:
    """Share of right answers."""
    module.eval()
    right = [(module(tokens, mask).argmax(1) == labels) for tokens, mask, labels in DataLoader(data, batch_size=100)]
    return float(torch.cat(right).float().mean())


@torch.no_grad()
def _features(module: Normed, images: Tensor) -> Tensor:
    module.eval()
    found: Callable[[Tensor], Tensor] = module.body
    features = found(images)
    module.train()
    return features


def _shapes() -> str:
    return f"MiniLM ({BLOCKS} blocks) with a classifier, one batch of {BATCH} x {TOKENS} tokens."


if __name__ == "__main__":
    main()
