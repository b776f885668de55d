"""Small exchanges between all ranks of a sharded run, so that all of them run the same layers."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy

from lightning_freeze.namespaces import either


class Ranks:
    """All ranks of a run; each method must be called on all of them.

    Args:
        device: The device of this rank, on which its process group communicates.
        same_data: The process group of the ranks that see the same data (tensor parallel), ``None`` if there is none.
    """

    def __init__(self, device: torch.device, same_data: Any = None) -> None:
        self._device = device
        self._same_data = same_data

    def highest(self, value: int) -> int:
        """Return the highest value of any rank.

        Args:
            value: The value of this rank.
        """
        found = torch.tensor([value], device=self._device)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found.item())

    def first_text(self, text: str | None) -> str | None:
        """Return the text of the lowest rank that has one, ``None`` if no rank has.

        Args:
            text: The text of this rank.
        """
        texts: list[str | None] = [None] * dist.get_world_size()
        dist.all_gather_object(texts, text)
        return next((found for found in texts if found is not None), None)

    def is_replicated(self, digest: bytes) -> bool:
        """Whether the ranks that see the same data have the same digest; ``True`` if there are no such ranks.

        Args:
            digest: At least 7 bytes.
        """
        if self._same_data is None:
            return True
        number = int.from_bytes(digest[:7], "little")
        found = torch.tensor([number, -number], device=self._device)
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self._same_data)
        highest, lowest = found.tolist()
        return bool(highest == -lowest)


def ranks_of(trainer: Trainer) -> Ranks | None:
    """Return the ranks that must run the same layers; ``None`` under strategies that do not shard by FSDP2 or tensor.

    Args:
        trainer: The running trainer.
    """
    strategy: Any = trainer.strategy
    if not isinstance(strategy, either(ModelParallelStrategy)):
        return None
    mesh = strategy.device_mesh["tensor_parallel"]
    return Ranks(strategy.root_device, mesh.get_group() if mesh.size() > 1 else None)
