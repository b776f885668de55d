"""Samplers and collation: which examples form a batch, on one process or several, and how they are padded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, DistributedSampler

from lightning_freeze.module.tasks import IGNORE_INDEX


class LengthBucketSampler(DistributedSampler[int]):
    """Orders examples so that the batches of an ordinary batch size hold similar lengths.

    The examples are shuffled in each epoch, cut into buckets of ``bucket_batches`` batches, sorted by length within
    each bucket, and the batches are then shuffled. Every process draws the same order and takes its share of each
    batch, so that the processes of one step have similar lengths too. It is a ``DistributedSampler``, whose epoch
    Lightning sets and which Lightning leaves in place.

    Args:
        lengths: Length of each example.
        batch_size: Examples per batch and process.
        shuffle: Whether to shuffle; otherwise all examples come sorted, the longest first.
        seed: The same seed and epoch give the same order.
        bucket_batches: Batches per bucket; 0 shuffles without regard to length.
        num_replicas: Number of processes.
        rank: Number of this process.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        shuffle: bool = True,
        seed: int = 0,
        bucket_batches: int = 50,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        super().__init__(lengths, num_replicas, rank, shuffle, seed)  # type: ignore[arg-type]
        self.lengths = torch.as_tensor(lengths)
        self.batch_size = batch_size
        self.bucket_batches = bucket_batches

    def __iter__(self) -> Iterator[int]:
        """Return this process's examples in order."""
        order = self._shuffled() if self.shuffle else self._by_length(torch.arange(len(self.lengths)))
        # Every process needs the same number of examples; otherwise they would wait for each other indefinitely.
        short = self.total_size - len(order)
        order = torch.cat([order, order.repeat(-(-short // len(order)))[:short]])
        return iter(order[self.rank :: self.num_replicas].tolist())

    def _shuffled(self) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator)
        if self.bucket_batches == 0:
            return order
        step = self.batch_size * self.num_replicas
        buckets = [self._by_length(bucket) for bucket in order.split(step * self.bucket_batches)]
        batches = list(torch.cat(buckets).split(step))
        # A short batch must stay last: batches are cut from the order at fixed places.
        last = [batches.pop()] if len(batches[-1]) < step else []
        places = torch.randperm(len(batches), generator=generator).tolist()
        return torch.cat([batches[place] for place in places] + last)

    def _by_length(self, indices: Tensor) -> Tensor:
        return indices[torch.argsort(self.lengths[indices], descending=True, stable=True)]


class EvaluationSampler(DistributedSampler[list[int]]):
    """Batches for validation and testing on several processes, in which every example occurs once.

    Each process gets the same number of batches, because sharded models communicate in each forward pass, and sizes
    differ by at most one example. A batch holds at most ``batch_size`` examples (2 where ``batch_size`` is 1 and the
    number of examples is no multiple of the number of processes). With fewer examples than processes, every process
    evaluates all of them: each counts equally often, so that means and ratios over all processes are unchanged.

    Args:
        lengths: Length of each example; the longest come first.
        batch_size: Examples per batch and process.
        num_replicas: Number of processes.
        rank: Number of this process.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, num_replicas: int = 1, rank: int = 0) -> None:
        super().__init__(lengths, num_replicas, rank, shuffle=False)  # type: ignore[arg-type]
        order = torch.argsort(torch.as_tensor(lengths), descending=True, stable=True).tolist()
        if len(order) < num_replicas:
            self.batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
            return
        steps = -(-len(order) // (batch_size * num_replicas))
        if steps * num_replicas > len(order):
            steps = len(order) // num_replicas
        count = steps * num_replicas
        ends = [len(order) * i // count for i in range(count + 1)]
        self.batches = [order[ends[i] : ends[i + 1]] for i in range(rank, count, num_replicas)]

    def __iter__(self) -> Iterator[list[int]]:
        """Return this process's batches of examples."""
        return iter(self.batches)

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self.batches)


class PredictionSampler(DistributedSampler[int]):
    """Distributes the rows of a file to processes in the order of the file; all examples of a row go to one process.

    Args:
        rows: The row of each example.
        num_replicas: Number of processes.
        rank: Number of this process.
    """

    def __init__(self, rows: Sequence[int], num_replicas: int = 1, rank: int = 0) -> None:
        super().__init__(rows, num_replicas, rank, shuffle=False)  # type: ignore[arg-type]
        self.examples = [i for i, row in enumerate(rows) if row % num_replicas == rank]

    def __iter__(self) -> Iterator[int]:
        """Return this process's examples."""
        return iter(self.examples)

    def __len__(self) -> int:
        """Return the number of examples of this process."""
        return len(self.examples)


class BatchedExamples(Dataset[list[dict[str, Any]]]):
    """Examples that are fetched batch by batch.

    Args:
        examples: The examples.
    """

    def __init__(self, examples: Sequence[dict[str, Any]]) -> None:
        self.examples = examples

    def __getitem__(self, indices: int | list[int]) -> list[dict[str, Any]]:
        """Return some of the examples, as a list also for a single index."""
        return [self.examples[i] for i in ([indices] if isinstance(indices, int) else indices)]

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.examples)


class Collator:
    """Makes a batch of examples, padded to the longest of them.

    Args:
        pad_token_id: Fills ``input_ids``.
        token_labels: Whether ``labels`` are one per token, and are filled with -100.
        side: The side that is filled: ``"right"`` or ``"left"``.
        pad_token_type_id: Fills ``token_type_ids``.
        shortest: Batches of shorter examples are padded to so many tokens.
    """

    def __init__(
        self,
        pad_token_id: int,
        token_labels: bool = False,
        side: str = "right",
        pad_token_type_id: int = 0,
        shortest: int = 1,
    ) -> None:
        self.token_labels = token_labels
        self.side = side
        self.shortest = shortest
        self.fill = {
            "input_ids": pad_token_id,
            "token_type_ids": pad_token_type_id,
            "attention_mask": 0,
            "labels": IGNORE_INDEX,
        }

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Return a batch: ``input_ids``, ``attention_mask`` (batch, sequence), ``labels``, ``index``.

        Args:
            examples: As :func:`encode` makes them.
        """
        batch: dict[str, Tensor] = {}
        for key in examples[0]:
            if key == "index":
                batch[key] = torch.tensor([example[key] for example in examples])
            elif key == "labels" and not self.token_labels:
                batch[key] = torch.stack([example[key] for example in examples])
            else:
                batch[key] = self._pad(key, [example[key] for example in examples])
        ones = [torch.ones_like(example["input_ids"]) for example in examples]
        batch["attention_mask"] = self._pad("attention_mask", ones)
        return batch

    def _pad(self, key: str, rows: list[Tensor]) -> Tensor:
        fill = self.fill.get(key, 0)
        padded = pad_sequence(rows, batch_first=True, padding_value=fill, padding_side=self.side).long()
        missing = max(0, self.shortest - padded.shape[1])
        return pad(padded, (missing, 0) if self.side == "left" else (0, missing), value=fill)
