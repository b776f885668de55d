"""Buckets of similar length: complete, seeded, and the same on every process."""

from __future__ import annotations

import random

import pytest
import torch

from lightning_freeze.data.batching import Collator, EvaluationSampler, LengthBucketSampler, PredictionSampler

RNG = random.Random(0)
LENGTHS = [RNG.randint(3, 60) for _ in range(203)]


def padding(order: list[int], batch_size: int) -> int:
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    return sum(max(LENGTHS[i] for i in batch) * len(batch) - sum(LENGTHS[i] for i in batch) for batch in batches)


def test_each_epoch_holds_every_example_once_in_another_order() -> None:
    sampler = LengthBucketSampler(LENGTHS, batch_size=8, seed=1)
    first = list(sampler)
    assert sorted(first) == list(range(203))
    sampler.set_epoch(1)
    second = list(sampler)
    assert sorted(second) == list(range(203)) and second != first
    sampler.set_epoch(0)
    assert list(sampler) == first
    assert list(LengthBucketSampler(LENGTHS, batch_size=8, seed=1)) == first
    assert list(LengthBucketSampler(LENGTHS, batch_size=8, seed=2)) != first


def test_buckets_save_padding() -> None:
    bucketed = padding(list(LengthBucketSampler(LENGTHS, batch_size=8)), 8)
    plain = padding(list(LengthBucketSampler(LENGTHS, batch_size=8, bucket_batches=0)), 8)
    assert bucketed < plain / 4


def test_unshuffled_comes_longest_first() -> None:
    order = list(LengthBucketSampler(LENGTHS, batch_size=8, shuffle=False))
    assert [LENGTHS[i] for i in order] == sorted(LENGTHS, reverse=True)


@pytest.mark.parametrize("shuffle", [True, False])
def test_processes_share_the_examples_and_have_similar_lengths(shuffle: bool) -> None:
    samplers = [
        LengthBucketSampler(LENGTHS, batch_size=4, shuffle=shuffle, num_replicas=2, rank=rank) for rank in (0, 1)
    ]
    orders = [list(sampler) for sampler in samplers]
    assert len(orders[0]) == len(orders[1]) == len(samplers[0]) == 102
    assert set(orders[0]) | set(orders[1]) == set(range(203))
    one = list(LengthBucketSampler(LENGTHS, batch_size=8, shuffle=shuffle))
    # Process by process, the batches of one step are one larger batch of a single process.
    for step in range(25):
        shares = orders[0][step * 4 : step * 4 + 4] + orders[1][step * 4 : step * 4 + 4]
        assert sorted(shares) == sorted(one[step * 8 : step * 8 + 8])


def test_more_processes_than_examples() -> None:
    shares = [list(LengthBucketSampler([5], batch_size=2, num_replicas=3, rank=rank)) for rank in range(3)]
    assert shares == [[0], [0], [0]]


def example(ids: list[int], labels: object) -> dict[str, object]:
    return {"input_ids": torch.tensor(ids, dtype=torch.int32), "labels": torch.tensor(labels), "index": len(ids)}


def test_collator_pads_to_the_longest() -> None:
    batch = Collator(pad_token_id=9)([example([1, 2, 3], 0), example([4], 1)])
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [0, 1]
    assert batch["index"].tolist() == [3, 1]
    assert batch["input_ids"].dtype == batch["attention_mask"].dtype == torch.long


def test_collator_pads_token_labels_and_the_left_side() -> None:
    rows = [example([1, 2], [7, 8]), example([3], [6])]
    assert Collator(0, token_labels=True)(rows)["labels"].tolist() == [[7, 8], [6, -100]]
    assert Collator(0, token_labels=True, side="left")(rows)["input_ids"].tolist() == [[1, 2], [0, 3]]


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 16])
@pytest.mark.parametrize("count", [8, 9, 15, 16, 17, 50, 203])
def test_evaluation_holds_every_example_once_in_as_many_batches(processes: int, batch_size: int, count: int) -> None:
    samplers = [EvaluationSampler(LENGTHS[:count], batch_size, processes, rank) for rank in range(processes)]
    assert len({len(sampler) for sampler in samplers}) == 1  # sharded models wait for each other in every batch
    batches = [batch for sampler in samplers for batch in sampler]
    assert sorted(i for batch in batches for i in batch) == list(range(count))
    sizes = {len(batch) for batch in batches}
    assert min(sizes) >= 1 and max(sizes) - min(sizes) <= 1
    assert max(sizes) <= max(batch_size, 2)
    first = [samplers[0].batches[0][0], samplers[-1].batches[-1][-1]]
    assert [LENGTHS[i] for i in first] == [max(LENGTHS[:count]), min(LENGTHS[:count])]


def test_with_fewer_examples_than_processes_each_evaluates_all() -> None:
    shares = [list(EvaluationSampler([3, 9], batch_size=4, num_replicas=3, rank=rank)) for rank in range(3)]
    assert shares == [[[1, 0]]] * 3


def test_all_examples_of_a_row_are_predicted_by_one_process() -> None:
    rows = [0, 0, 0, 1, 2, 2, 3]
    shares = [list(PredictionSampler(rows, 2, rank)) for rank in (0, 1)]
    assert shares == [[0, 1, 2, 4, 5], [3, 6]]
