"""Fits adapters, and a student beside its teacher, in two processes under DDP and in one alone.

Usage: other_methods_script.py OUT
"""

import sys
from pathlib import Path

import torch
from distributed_cases import BATCHES, SIZE, Batches
from distributed_processes import run_ranks
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForSequenceClassification

from lightning_freeze import DiscriminativeLR, GradualUnfreezing, TransformerModule

EPOCHS = 4
SIZES = {"vocab_size": 32, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def bert(blocks: int) -> BertForSequenceClassification:
    return BertForSequenceClassification(BertConfig(num_hidden_layers=blocks, **SIZES, **NO_DROPOUT)).double()


def sgd(params):
    return torch.optim.SGD(params, lr=0.1)


def constant(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)


def rows() -> list[dict[str, torch.Tensor]]:
    tokens = torch.randint(1, 32, (BATCHES * 2 * SIZE, 6), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row[0] % 2} for row in tokens]


def module(name: str, out: Path) -> tuple[TransformerModule, list[int]]:
    torch.manual_seed(0)
    seen: list[int] = []
    settings = {"num_classes": 2, "optimizer": sgd, "lr_scheduler": constant}
    if name == "lora":
        return TransformerModule(bert(3), peft={"method": "lora", "r": 2}, **settings).double(), seen
    teacher = bert(3)
    teacher.register_forward_hook(lambda module, args, output: seen.append(len(output.logits)))
    options = {"hidden_weight": 0.2, "verify": 0, "start_from_teacher": True}
    if name == "shared":
        options["cache_dir"] = str(out / "kept")
    return TransformerModule(bert(2), teacher=teacher, distillation=options, **settings).double(), seen


def fit(out: Path, rank: int, world: int) -> None:
    names = ["lora", "student", "shared"] if world > 1 else ["lora", "student"]
    for name in names:
        ours, seen = module(name, out)
        start = {n: p.detach().clone() for n, p in ours.named_parameters()}
        trainer = Trainer(
            max_epochs=EPOCHS,
            accelerator="cpu",
            devices=world,
            strategy="ddp" if world > 1 else "auto",
            callbacks=[GradualUnfreezing(layers_per_phase=1, verbose=False), DiscriminativeLR(0.5, verbose=False)],
            use_distributed_sampler=False,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(ours, DataLoader(rows(), batch_sampler=Batches(rank, world)))
        weights = {n: p.detach() for n, p in ours.named_parameters()}
        moved = [n for n, p in weights.items() if not torch.equal(p, start[n])]
        who = rank if world > 1 else "alone"
        torch.save({"weights": weights, "moved": moved, "seen": sum(seen)}, out / f"{name}-{who}.pt")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    run_ranks(lambda rank: fit(folder, rank, 2), lambda: fit(folder, 0, 1))
