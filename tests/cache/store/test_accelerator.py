"""Hidden states that stay on the accelerator; the CPU stands in for one that has memory of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as tf
from cached_fits import MemoryStore, Plain, assert_same, both, loader, make_cache, make_trainer
from lightning.pytorch import Callback
from torch import Tensor

from lightning_freeze import EpochTrigger, GradualUnfreezing, LayerFreezing
from lightning_freeze.cache.prefix import entries
from lightning_freeze.cache.store.accelerator import AcceleratorTier
from lightning_freeze.errors import ConfigurationError

A, B = b"a" * 16, b"b" * 16


def bert() -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 48}
    return tf.BertForSequenceClassification(tf.BertConfig(vocab_size=100, **sizes))


def keys(*numbers: int) -> list[bytes]:
    return [bytes([number]) * 16 for number in numbers]


def rows(count: int) -> list[Tensor]:
    return [torch.full((4,), float(number)) for number in range(count)]


class Counting(MemoryStore):
    reads = 0

    def get(self, namespace: bytes, keys: Any) -> Any:
        self.reads += len(keys)
        return super().get(namespace, keys)


@pytest.fixture
def accelerated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entries, "has_own_memory", lambda device: True)


@pytest.mark.fast_cases(2)
@pytest.mark.usefixtures("accelerated")
@pytest.mark.parametrize("budget", ["64MiB", 9000])
@pytest.mark.parametrize("shuffle", [False, True])
def test_run_equals_the_uncached_one(budget: str | int, shuffle: bool) -> None:
    cache = make_cache(max_accelerator_memory=budget)
    freezing = LayerFreezing("50%", verbose=False)
    plain, cached, _ = both(
        Plain(bert()), freezing, cache=cache, data=lambda: loader(shuffle=shuffle), validation=loader, epochs=5
    )
    assert_same(plain, cached, exact=not shuffle)
    assert not cache.reasons and cache.hit_rate > 0.5


@pytest.mark.slow
@pytest.mark.usefixtures("accelerated")
def test_moving_boundary() -> None:
    schedule = GradualUnfreezing(trigger=EpochTrigger(2), verbose=False)
    cache = make_cache(max_accelerator_memory="1MiB")
    plain, cached, _ = both(Plain(bert()), schedule, cache=cache, epochs=12)
    assert_same(plain, cached)


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("is_accelerated", [True, False])
def test_what_stays_is_not_read_again(is_accelerated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entries, "has_own_memory", lambda device: is_accelerated)
    store = Counting()
    cache = make_cache(store, max_accelerator_memory="1MiB", verify=0)
    both(Plain(bert()), LayerFreezing("50%", verbose=False), cache=cache, epochs=2)
    two = store.reads
    store = Counting()
    cache = make_cache(store, max_accelerator_memory="1MiB", verify=0)
    both(Plain(bert()), LayerFreezing("50%", verbose=False), cache=cache, epochs=6)
    # Twelve samples an epoch: the first is filled, the second reads what the first batch has left, then none is read.
    assert store.reads - two == (0 if is_accelerated else 4 * 12)


def test_budget_is_kept_and_what_is_there_stays() -> None:
    tier = AcceleratorTier(3 * 16)
    tier.put(A, keys(0, 1, 2, 3), rows(4), torch.float32)
    assert tier.bytes == 48
    found = tier.get(A, keys(0, 1, 2, 3))
    assert [row is not None for row in found] == [True, True, True, False]
    tier.put(A, keys(3), rows(1), torch.float32)
    assert tier.get(A, keys(3)) == [None]


def test_copies_are_kept_in_the_stored_type() -> None:
    tier = AcceleratorTier(1000)
    row = torch.ones(4)
    tier.put(A, keys(0), [row], torch.bfloat16)
    row.zero_()
    (found,) = tier.get(A, keys(0))
    assert found is not None and found.dtype == torch.bfloat16 and bool((found == 1).all())
    assert tier.bytes == 8


def test_prefix_that_is_left_behind_makes_room() -> None:
    tier = AcceleratorTier(2 * 16)
    tier.put(A, keys(0, 1), rows(2), torch.float32)
    for _ in range(300):
        tier.get(B, keys(0))
    tier.put(B, keys(0, 1), rows(2), torch.float32)
    assert all(row is not None for row in tier.get(B, keys(0, 1)))
    assert tier.get(A, keys(0)) == [None] and tier.bytes == 32


def test_full_device_gives_everything_back(monkeypatch: pytest.MonkeyPatch) -> None:
    tier = AcceleratorTier(1000)
    tier.put(A, keys(0), rows(1), torch.float32)

    def full(*args: Any, **kwargs: Any) -> Tensor:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Tensor, "to", full)
    tier.put(A, keys(1), rows(1), torch.float32)
    assert tier.bytes == tier.budget == 0
    assert tier.get(A, keys(0, 1)) == [None, None]


def test_size_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"max_accelerator_memory=.*'2Gib2'"):
        make_cache(max_accelerator_memory="2Gib2")


def test_nothing_stays_on_the_device_behind_a_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entries, "has_own_memory", lambda device: True)
    cache = make_cache(max_accelerator_memory="64MiB")
    tiers = []

    class Looks(Callback):
        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            storage = cache._attachment.storage
            assert storage is not None and storage.accelerator is not None
            assert storage.accelerator.bytes > 0
            tiers.append(storage.accelerator)

    make_trainer(LayerFreezing("50%", verbose=False), cache, Looks()).fit(Plain(bert()), loader())
    assert [tier.bytes for tier in tiers] == [0]
