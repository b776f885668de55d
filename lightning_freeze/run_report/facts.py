"""What a report says about a run beside its history."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from lightning.pytorch import LightningModule, Trainer

from lightning_freeze.run_report.measures.prefix_cache import cache_lines, cache_of


@dataclass(frozen=True)
class RunFacts:
    """What a report says about a run beside its history.

    Attributes:
        module: Class of the module.
        optimizers: Classes of the optimizers.
        epoch: Epochs that have ended.
        epochs: Epochs of the whole run; ``None`` if it is open.
        processes: Number of processes.
        written: When this was found out.
        monitor: The metrics that come first.
        hit_rate: Share of the samples that FrozenPrefixCache has read so far; ``None`` if the run has none.
        cache: What it did in the last forward pass, one sentence for each tower.
    """

    module: str
    optimizers: tuple[str, ...]
    epoch: int
    epochs: int | None
    processes: int
    written: str
    monitor: tuple[str, ...] = field(default=())
    hit_rate: float | None = None
    cache: tuple[str, ...] = field(default=())


def facts_of(trainer: Trainer, module: LightningModule, monitor: tuple[str, ...]) -> RunFacts:
    """The facts of a running fit.

    Args:
        trainer: The running trainer.
        module: The module that is being fitted.
        monitor: The metrics that come first.
    """
    cache = cache_of(trainer)
    most = trainer.max_epochs
    return RunFacts(
        module=type(module).__name__,
        optimizers=tuple(type(optimizer).__name__ for optimizer in trainer.optimizers),
        epoch=trainer.current_epoch,
        epochs=most if most is not None and most > 0 and trainer.max_steps == -1 else None,
        processes=trainer.world_size,
        written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        monitor=monitor,
        hit_rate=None if cache is None else cache.hit_rate,
        cache=() if cache is None else tuple(cache_lines(cache)),
    )
