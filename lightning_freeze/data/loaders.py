"""Data loaders for training, evaluation and prediction, on one process or several."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, SequentialSampler

from lightning_freeze.arguments import check_at_least
from lightning_freeze.data.batching import (
    BatchedExamples,
    EvaluationSampler,
    LengthBucketSampler,
    PredictionSampler,
)
from lightning_freeze.errors import ConfigurationError

Examples = Sequence[dict[str, Any]]
Collate = Callable[[Examples], dict[str, Any]]

# More cannot be meant, and their product still fits in 64 bits.
_MOST = 2**31 - 1

# Accepted on any machine. More than four worker processes for each CPU bring nothing, and thousands stop the machine.
_FEW_WORKERS = 64


def check_sizes(batch_size: int, num_workers: int, bucket_batches: int) -> None:
    """Check the numbers that data loaders are made with.

    Args:
        batch_size: Examples per batch and process.
        num_workers: Worker processes that make batches.
        bucket_batches: As for :class:`LengthBucketSampler`.

    Raises:
        ConfigurationError: A number is out of range.
    """
    most_workers = max(_FEW_WORKERS, 4 * (os.cpu_count() or 1))
    ranges = {
        "batch_size": (batch_size, 1, _MOST),
        "num_workers": (num_workers, 0, most_workers),
        "bucket_batches": (bucket_batches, 0, _MOST),
    }
    for name, (value, least, most) in ranges.items():
        check_at_least(f"data.{name}", value, least)
        if value > most:
            raise ConfigurationError(f"data.{name} is {value}: expected at most {most:,}.")


@dataclass(frozen=True)
class LoaderFactory:
    """Makes the data loaders of one process.

    Args:
        batch_size: Examples per batch and process.
        num_workers: Worker processes that make batches.
        num_replicas: Number of processes that share the data.
        rank: Number of this process.
    """

    batch_size: int
    num_workers: int
    num_replicas: int = 1
    rank: int = 0

    def train(self, examples: Examples, collator: Collate, seed: int, bucket_batches: int) -> DataLoader[Any]:
        """Return batches of similar length, in an order that changes each epoch.

        Args:
            examples: All examples, those of the other processes included.
            collator: Makes a batch of examples.
            seed: Seed of the order.
            bucket_batches: As for :class:`LengthBucketSampler`.
        """
        return self._loader(examples, collator, self._buckets(examples, True, seed, bucket_batches))

    def evaluate(self, examples: Examples, collator: Collate) -> DataLoader[Any]:
        """Return batches in which each example occurs once over all processes, the longest first.

        Args:
            examples: All examples.
            collator: Makes a batch of examples.
        """
        if self.num_replicas == 1:
            return self._loader(examples, collator, self._buckets(examples, False))
        sampler = EvaluationSampler(_lengths(examples), self.batch_size, self.num_replicas, self.rank)
        return self._loader(BatchedExamples(examples), collator, sampler, batch_size=None)

    def predict(self, examples: Examples, collator: Collate) -> DataLoader[Any]:
        """Return batches in the order of the file; each row is predicted by one process.

        Args:
            examples: All examples, at least one for each process.
            collator: Makes a batch of examples.
        """
        if self.num_replicas == 1:
            return self._loader(examples, collator, SequentialSampler(examples))
        rows = [int(example["index"]) for example in examples]
        return self._loader(examples, collator, PredictionSampler(rows, self.num_replicas, self.rank))

    def _buckets(
        self, examples: Examples, shuffle: bool, seed: int = 0, bucket_batches: int = 0
    ) -> LengthBucketSampler:
        return LengthBucketSampler(
            _lengths(examples), self.batch_size, shuffle, seed, bucket_batches, self.num_replicas, self.rank
        )

    def _loader(self, dataset: Any, collator: Collate, sampler: Any, **batching: Any) -> DataLoader[Any]:
        return DataLoader(
            dataset,
            sampler=sampler,
            collate_fn=collator,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
            **{"batch_size": self.batch_size, **batching},
        )


def _lengths(examples: Examples) -> list[int]:
    return [len(example["input_ids"]) for example in examples]
