"""The same plan for each tool: the head first, everything from the given epoch on, at the user's rate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from finetuning_scheduler import FinetuningScheduler
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import BackboneFinetuning
from model import EPOCHS, RATE, UNFREEZE, Classifier

from lightning_freeze import EpochTrigger, Phase, PhasedFineTuning


def lightning_freeze(folder: Path) -> Callback:
    return PhasedFineTuning([Phase("head", EpochTrigger(UNFREEZE)), Phase("all")], verbose=False)


def backbone_finetuning(folder: Path) -> Callback:
    # By default it would give the backbone a tenth of the rate and double that with each epoch.
    return BackboneFinetuning(
        unfreeze_backbone_at_epoch=UNFREEZE,
        lambda_func=one,
        backbone_initial_lr=RATE,
        initial_denom_lr=1.0,
        train_bn=False,
    )


def finetuning_scheduler(folder: Path) -> Callback:
    names = [name for name, _ in Classifier().named_parameters()]
    head = [name for name in names if name.startswith("head.")]
    rest = [name for name in names if name not in head]
    schedule = {
        0: {"params": head, "max_transition_epoch": UNFREEZE},
        1: {"params": rest, "lr": RATE, "max_transition_epoch": EPOCHS},
    }
    return FinetuningScheduler(ft_schedule=schedule, epoch_transitions_only=True)


def one(epoch: int) -> float:
    return 1.0


TOOLS: dict[str, Callable[[Path], Callback]] = {
    "lightning-freeze": lightning_freeze,
    "BackboneFinetuning": backbone_finetuning,
    "finetuning-scheduler": finetuning_scheduler,
}
