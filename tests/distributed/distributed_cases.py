"""What the tests of several processes fit: one tiny model, by many schedules, under many options of the strategies."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.parallel.distributed as ddp
from lightning.pytorch import Callback
from lightning.pytorch.plugins import LayerSync
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).parents[1] / "callbacks"))
from toys import StatefulLoader, Toy

from lightning_freeze import (
    L2SP,
    LISA,
    AutoFreeze,
    BlockCoordinate,
    ChainThaw,
    DiscriminativeLR,
    EpochTrigger,
    FisherUnfreezing,
    FreezeOut,
    GradualUnfreezing,
    LayerFreezing,
    LinearProbeThenFineTune,
    Phase,
    PhasedFineTuning,
    PlateauTrigger,
    ReinitTopLayers,
    RelativeGradientLR,
    SlimFit,
    SpectrumFreezing,
    StepTrigger,
    ULMFiT,
)

EPOCHS, BATCHES, SIZE = 4, 4, 2  # SIZE: samples of one batch on one of two ranks


class Batches:
    """The share of one rank in each global batch, so that the ranks together see what one process sees."""

    def __init__(self, rank: int, world: int) -> None:
        self.size = 2 * SIZE // world
        self.rank = rank

    def __iter__(self):
        for batch in range(BATCHES):
            start = batch * 2 * SIZE + self.rank * self.size
            yield list(range(start, start + self.size))

    def __len__(self) -> int:
        return BATCHES


def data(rank: int, world: int) -> DataLoader:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 16, (BATCHES * 2 * SIZE, 5), generator=generator)
    return DataLoader(TensorDataset(tokens, tokens.sum(1) % 2), batch_sampler=Batches(rank, world))


class Module(Toy):
    """Its ``scripted`` metric, one value for each validation, differs between the ranks.

    Each rank alone would come to another decision than their mean: one sees it rise, the other one fall.
    """

    means: tuple[float, ...] = (2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
    spread = 5.0

    def __init__(self) -> None:
        super().__init__()
        self.validations = 0

    def train_dataloader(self):
        batches = StatefulLoader()
        batches.batches = list(data(self.global_rank, self.trainer.world_size))
        return batches

    def val_dataloader(self):
        return data(self.global_rank, self.trainer.world_size)

    def on_validation_epoch_end(self) -> None:
        number, self.validations = self.validations, self.validations + 1
        sign = 0 if self.trainer.world_size == 1 else 1 - 2 * self.global_rank
        self.log("scripted", self.means[number] + sign * self.spread * (1 + number))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["validations"] = self.validations

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.validations = checkpoint["validations"]

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01, weight_decay=0.1)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + 0.1 * step))
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


class BestIsFirst(Module):
    """The first validation is the best one, but not for a rank that looks at its own metric only."""

    means = (1.0, 2.0, 3.0, 1.0, 2.0, 3.0, 4.0, 5.0)


class WithoutScheduler(Module):
    """The strategy sets the rates of all steps."""

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01, weight_decay=0.1)


class OnRankZero(Module):
    """Only one rank has the metric."""

    def on_validation_epoch_end(self) -> None:
        number, self.validations = self.validations, self.validations + 1
        if self.global_rank == 0:
            self.log("scripted", self.means[number], rank_zero_only=True)


class Normalised(Module):
    """Has batch norms, in each block."""

    def __init__(self) -> None:
        super().__init__()
        for block in self.encoder.layers:
            block.dropout = nn.Sequential(nn.Flatten(0, 1), nn.BatchNorm1d(8, dtype=torch.float64), Unflatten(5))


class Unflatten(nn.Module):
    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(-1, self.length, x.shape[-1])


class Synchronised(nn.BatchNorm1d):
    """Stands for ``SyncBatchNorm``, which DDP refuses on a CPU."""


class ReplaceNorms(LayerSync):
    """Puts other modules in the place of the batch norms, as ``Trainer(sync_batchnorm=True)`` does, then."""

    def apply(self, model: nn.Module) -> nn.Module:
        for name, child in model.named_children():
            if isinstance(child, nn.BatchNorm1d):
                other = Synchronised(child.num_features)
                other._parameters, other._buffers = child._parameters, child._buffers
                setattr(model, name, other)
            self.apply(child)
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        return model


def gradual(**options: Any) -> GradualUnfreezing:
    return GradualUnfreezing(verbose=False, **options)


def phased(*phases: Phase, **options: Any) -> PhasedFineTuning:
    return PhasedFineTuning(list(phases), verbose=False, **options)


def refreezing(**options: Any) -> PhasedFineTuning:
    return phased(
        Phase("head", StepTrigger(3)),
        Phase("1:,head", EpochTrigger(1)),
        Phase("embeddings,0", PlateauTrigger("scripted", patience=0)),
        Phase("all"),
        **options,
    )


def plateau(**options: Any) -> PhasedFineTuning:
    return phased(Phase("head", PlateauTrigger("scripted", patience=0)), Phase("all"), **options)


@dataclass
class Case:
    """One fit.

    Attributes:
        callbacks: Makes them.
        phases: How many sets of layers train, one after another.
        options: For the ``Trainer``.
        ddp: For ``DDPStrategy``.
        module: Makes it.
        validates: Whether there is a validation before the fit.
        backend: Of ``torch.compile``, if the encoder is compiled.
    """

    callbacks: Callable[[], list[Callback]]
    phases: int
    options: dict[str, Any] = field(default_factory=dict)
    ddp: dict[str, Any] = field(default_factory=dict)
    module: type[Module] = Module
    validates: bool = False
    backend: str | None = None


EVERYWHERE = {
    "static": Case(lambda: [LayerFreezing("embeddings,:2", verbose=False)], 1),
    "epochs": Case(lambda: [gradual(layers_per_phase=2), DiscriminativeLR(0.8, verbose=False)], 4, validates=True),
    "steps": Case(lambda: [gradual(trigger=StepTrigger(2), warmup_steps=3)], 6),
    "plateau": Case(lambda: [plateau()], 2),
    "plateau on rank 0": Case(lambda: [plateau()], 2, module=OnRankZero),
    "refreezing": Case(lambda: [refreezing()], 4),
    "restore best": Case(lambda: [refreezing(restore_best=True, warmup_steps=2)], 4, module=BestIsFirst),
    "dropped state": Case(lambda: [refreezing(drop_optimizer_state=True)], 4),
    "accumulation": Case(lambda: [gradual(trigger=StepTrigger(1))], 6, {"accumulate_grad_batches": 2, "max_epochs": 6}),
    # The plateau is found after two batches, of three whose gradients are accumulated.
    "mid-accumulation": Case(lambda: [plateau()], 2, {"accumulate_grad_batches": 3, "val_check_interval": 2}),
    "clipping": Case(lambda: [refreezing()], 4, {"gradient_clip_val": 0.05}),
    "rates and starts": Case(
        lambda: [L2SP(verbose=False), ReinitTopLayers(verbose=False), RelativeGradientLR(batches=2, verbose=False)], 1
    ),
    "chain thaw": Case(lambda: [ChainThaw(StepTrigger(2), monitor="scripted", verbose=False)], 7, validates=True),
    "linear probe": Case(lambda: [LinearProbeThenFineTune(EpochTrigger(2), lr=3.0, verbose=False)], 2),
    "ulmfit": Case(lambda: [ULMFiT(StepTrigger(2), verbose=False)], 6, module=WithoutScheduler),
    "lisa": Case(lambda: [LISA(2, interval=2, seed=1, verbose=False)], 8),
    "block coordinate": Case(lambda: [BlockCoordinate(interval=1, embeddings=True, verbose=False)], 16),
    "autofreeze": Case(lambda: [AutoFreeze(num_intervals=8, verbose=False)], 3),
    # A set that is measured between two others that train, until one layer is left.
    "fisher": Case(lambda: [FisherUnfreezing(3, 1, verbose=False)], 6),
    "slimfit": Case(lambda: [SlimFit(0.7, 2, verbose=False)], 7),
    "freeze out": Case(lambda: [FreezeOut(verbose=False)], 6),
    "spectrum": Case(lambda: [SpectrumFreezing(verbose=False)], 1),
}

DDP_ONLY = {
    "bucket view": Case(lambda: [refreezing()], 4, ddp={"gradient_as_bucket_view": True}),
    "static graph": Case(lambda: [refreezing()], 4, ddp={"static_graph": True}),
    "find unused": Case(lambda: [refreezing()], 4, ddp={"find_unused_parameters": True}),
    "compiled": Case(lambda: [refreezing()], 4, backend="aot_eager"),
    "replaced norms": Case(
        lambda: [LayerFreezing("embeddings,:4", verbose=False)], 1, {"plugins": [ReplaceNorms()]}, module=Normalised
    ),
}


class Save(Callback):
    """Saves what every rank begins and ends with, the phases, how many elements each wrap communicates, and how often
    the parameters are sent.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.begun: dict[str, torch.Tensor] = {}
        self.communicated: list[tuple[int, int]] = []
        self.wrap: Any = None
        self.trained: list[list[str]] = []
        self.training_norms: set[str] = set()
        self.sent = 0
        self.send = ddp._sync_module_states

    def setup(self, trainer, pl_module, stage) -> None:
        def send(*args: Any, **kwargs: Any) -> None:
            self.sent += 1
            self.send(*args, **kwargs)

        ddp._sync_module_states = send

    def teardown(self, trainer, pl_module, stage) -> None:
        ddp._sync_module_states = self.send

    def on_train_start(self, trainer, pl_module) -> None:
        self.begun = whole(pl_module)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        trains = [name for name, p in pl_module.named_parameters() if p.requires_grad]
        if not self.trained or self.trained[-1] != trains:
            self.trained.append(trains)
        norms = (m for m in pl_module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
        self.training_norms |= {type(m).__name__ for m in norms if m.training}
        model = trainer.strategy.model
        if isinstance(model, DistributedDataParallel) and model is not self.wrap:
            self.wrap = model
            registered = model._get_ddp_logging_data()["total_parameter_size_bytes"] // 8
            self.communicated.append((registered, sum(p.numel() for p in pl_module.parameters() if p.requires_grad)))

    def on_train_end(self, trainer, pl_module) -> None:
        self.wrap = None
        content = {
            "begun": self.begun,
            "weights": whole(pl_module),
            "communicated": self.communicated,
            "trained": self.trained,
            "training_norms": sorted(self.training_norms),
            "sent": self.sent,
        }
        torch.save(content, f"{self.path}-{'alone' if trainer.world_size == 1 else trainer.global_rank}.pt")


def whole(module: nn.Module) -> dict[str, torch.Tensor]:
    """All weights and buffers; those that are sharded are gathered."""
    tensors = {k: v.full_tensor() if hasattr(v, "full_tensor") else v for k, v in module.state_dict().items()}
    return {k: v.detach().clone() for k, v in tensors.items()}
