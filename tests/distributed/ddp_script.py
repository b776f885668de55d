"""Fits the toy in one process or in several, by several schedules, and saves what every rank ends with.

Usage: ddp_script.py OUT STRATEGY DEVICES SCHEDULE [SCHEDULE ...]
"""

import sys
from pathlib import Path

import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.strategies import DDPStrategy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).parents[1] / "callbacks"))
from toys import Toy, trainer

from lightning_freeze import (
    DiscriminativeLR,
    EpochTrigger,
    GradualUnfreezing,
    LayerFreezing,
    Phase,
    PhasedFineTuning,
    PlateauTrigger,
    StepTrigger,
)

EPOCHS, BATCHES, SIZE = 4, 4, 2  # SIZE: samples of one batch on one of two ranks


class Ranks(Toy):
    """Its ``scripted`` metric differs between the ranks: only their mean makes a plateau where the test wants it."""

    def on_validation_epoch_end(self):
        means = (2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
        spread = (
            0.0 if self.trainer.world_size == 1 else (0.5 if self.global_rank == 0 else -0.5) * (1 + self.current_epoch)
        )
        self.log("scripted", means[self.current_epoch] + spread)


def gradual(**options):
    return GradualUnfreezing(verbose=False, **options)


def refreezing():
    phases = [
        Phase("head", StepTrigger(3)),
        Phase("1:,head", EpochTrigger(1)),
        Phase("embeddings,0", PlateauTrigger("scripted", patience=0)),
        Phase("all"),
    ]
    return PhasedFineTuning(phases, verbose=False)


SCHEDULES = {
    "static": (lambda: [LayerFreezing("embeddings,:2", verbose=False)], {}),
    "epochs": (lambda: [gradual(layers_per_phase=2), DiscriminativeLR(0.8, verbose=False)], {}),
    "steps": (lambda: [gradual(trigger=StepTrigger(2), warmup_steps=3)], {}),
    "plateau": (
        lambda: [
            PhasedFineTuning([Phase("head", PlateauTrigger("scripted", patience=0)), Phase("all")], verbose=False)
        ],
        {},
    ),
    "refreezing": (lambda: [refreezing()], {}),
    "accumulation": (lambda: [gradual(trigger=StepTrigger(1))], {"accumulate_grad_batches": 2, "max_epochs": 6}),
    "bucket view": (lambda: [gradual(layers_per_phase=2)], {"gradient_as_bucket_view": True}),
}


class Batches:
    """The share of one rank in each global batch, so that the ranks together see what one process sees."""

    def __init__(self, rank, world):
        self.size = 2 * SIZE // world
        self.rank, self.world = rank, world

    def __iter__(self):
        for batch in range(BATCHES):
            start = batch * 2 * SIZE + self.rank * self.size
            yield list(range(start, start + self.size))

    def __len__(self):
        return BATCHES


def data(rank, world):
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 16, (BATCHES * 2 * SIZE, 5), generator=generator)
    return DataLoader(TensorDataset(tokens, tokens.sum(1) % 2), batch_sampler=Batches(rank, world))


class Save(Callback):
    """Saves the weights of every rank, and how many elements each wrap of the model communicates."""

    def __init__(self, path):
        self.path = path
        self.communicated = []
        self.wrap = None

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        model = trainer.strategy.model
        if isinstance(model, DistributedDataParallel) and model is not self.wrap:
            self.wrap = model
            registered = model._get_ddp_logging_data()["total_parameter_size_bytes"] // 8
            self.communicated.append((registered, sum(p.numel() for p in pl_module.parameters() if p.requires_grad)))

    def on_train_end(self, trainer, pl_module):
        self.wrap = None
        torch.save(
            {"weights": pl_module.state_dict(), "communicated": self.communicated},
            f"{self.path}-{trainer.global_rank}.pt",
        )


class Module(Ranks):
    def train_dataloader(self):
        return data(self.global_rank, self.trainer.world_size)

    def val_dataloader(self):
        return data(self.global_rank, self.trainer.world_size)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01, weight_decay=0.1)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + 0.1 * step))
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


def main(out, launcher, devices, *names):
    for name in names:
        callbacks, options = SCHEDULES[name]
        options = dict(options)
        bucket_view = options.pop("gradient_as_bucket_view", False)
        strategy = "auto"
        if devices > 1:
            strategy = DDPStrategy(
                process_group_backend="gloo", start_method=launcher, gradient_as_bucket_view=bucket_view
            )
        seed_everything(0, verbose=False)
        options = {"max_epochs": EPOCHS, **options}
        the_trainer = trainer(
            *callbacks(),
            Save(f"{out}/{name}"),
            strategy=strategy,
            devices=devices,
            use_distributed_sampler=False,
            **options,
        )
        the_trainer.fit(Module())


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), *sys.argv[4:])
