"""Data loaders for training, evaluation and prediction, on one process or several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, SequentialSampler

from lightning_freeze.data.batching import (
    BatchedExamples,
    Collator,
    EvaluationSampler,
    LengthBucketSampler,
    PredictionSampler,
)

Examples = Sequence[dict[str, Any]]


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

    def train(self, examples: Examples, collator: Collator, seed: int, bucket_batches: int) -> DataLoader[Any]:
        """Return batches of similar length, in an order that changes each epoch.

        Args:
            examples: All examples, those of the other processes included.
            collator: Makes a batch of examples.
            seed: Seed of the order.
            bucket_batches: As for :class:`LengthBucketSampler`.
        """
        return self._loader(examples, collator, self._buckets(examples, True, seed, bucket_batches))

    def evaluate(self, examples: Examples, collator: Collator) -> DataLoader[Any]:
        """Return batches in which each example occurs once over all processes, the longest first.

        Args:
            examples: All examples.
            collator: Makes a batch of examples.
        """
        if self.num_replicas == 1:
            return self._loader(examples, collator, self._buckets(examples, False))
        sampler = EvaluationSampler(_lengths(examples), self.batch_size, self.num_replicas, self.rank)
        return self._loader(BatchedExamples(examples), collator, sampler, batch_size=None)

    def predict(self, examples: Examples, collator: Collator) -> DataLoader[Any]:
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

    def _loader(self, dataset: Any, collator: Collator, sampler: Any, **batching: Any) -> DataLoader[Any]:
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
