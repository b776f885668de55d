"""Data loaders for training, evaluation and prediction, on one process or several."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
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


def _unknown() -> None:
    return None


class ResumableLoader(DataLoader[Any]):
    """A data loader that goes on after the last batch of a run that is resumed in mid-epoch.

    The order of an epoch is that of its sampler, which knows the epoch. What comes before is read again and dropped.

    Args:
        dataset: The examples.
        done: Returns how many batches of the coming epoch the run has had; ``None`` if nothing knows, and then the
            loader counts itself.
        **options: Those of ``DataLoader``.
    """

    _taken = 0
    _stopped: Mapping[str, int] | None = None

    def __init__(self, dataset: Any, done: Callable[[], int | None] = _unknown, **options: Any) -> None:
        super().__init__(dataset, **options)
        self.done = done

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Return the batches of the epoch of the sampler, which are read once the first one is asked for."""
        stopped, self._stopped = self._stopped, None
        done = self.done()
        if done is None:
            # A checkpoint of the end of an epoch is followed by another one.
            done = stopped["batches"] if stopped is not None and stopped["epoch"] == self._epoch else 0
        elif done and stopped is not None and hasattr(self.sampler, "set_epoch"):
            # A run that max_steps has ended in mid-epoch counts the rest as another epoch.
            self.sampler.set_epoch(stopped["epoch"])
        self._taken = done
        for batch in islice(super().__iter__(), done, None):
            self._taken += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return the epoch, and how many of its batches have been taken."""
        return {"epoch": self._epoch, "batches": self._taken} if self._stopped is None else dict(self._stopped)

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on in the epoch of a state, after the batches that were taken there.

        Args:
            state: As :meth:`state_dict` returned it.
        """
        self._stopped = dict(state)

    @property
    def _epoch(self) -> int:
        # Lightning may put a sampler without epochs in place of the own one (overfit_batches).
        return int(getattr(self.sampler, "epoch", -1))


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

    def train(
        self,
        examples: Examples,
        collator: Collate,
        seed: int,
        bucket_batches: int,
        done: Callable[[], int | None] = _unknown,
    ) -> ResumableLoader:
        """Return batches of similar length, in an order that changes each epoch; a run can be resumed in mid-epoch.

        Args:
            examples: All examples, those of the other processes included.
            collator: Makes a batch of examples.
            seed: Seed of the order.
            bucket_batches: As for :class:`LengthBucketSampler`.
            done: As for :class:`ResumableLoader`.
        """
        sampler = self._buckets(examples, True, seed, bucket_batches)
        return ResumableLoader(examples, done, sampler=sampler, **self._options(collator))

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
        return DataLoader(dataset, sampler=sampler, **{**self._options(collator), **batching})

    def _options(self, collator: Collate) -> dict[str, Any]:
        return {
            "collate_fn": collator,
            "num_workers": self.num_workers,
            "pin_memory": torch.cuda.is_available(),
            "persistent_workers": self.num_workers > 0,
            "batch_size": self.batch_size,
        }


def _lengths(examples: Examples) -> list[int]:
    return [len(example["input_ids"]) for example in examples]
