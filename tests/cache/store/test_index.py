from __future__ import annotations

import numpy as np
import pytest

from lightning_freeze.cache.store.index import KeyIndex, as_array


def random_keys(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**64, (count, 2), dtype=np.uint64)


@pytest.mark.slow
def test_a_million_keys_take_less_than_100_bytes_each() -> None:
    index, count = KeyIndex(), 1_000_000
    keys, most = random_keys(count), 0.0
    for start in range(0, count, 20_000):
        part = slice(start, start + 20_000)
        index.insert(keys[part], np.arange(start, start + 20_000))
        most = max(most, index.nbytes / len(index))
    assert len(index) == count and most < 60
    # While the table grows, the old one, its keys in a row, and the new one are there at once.
    assert index.nbytes / count * (1 + 1 / 1.5) + 24 < 120
    assert (index.find(keys) == np.arange(count)).all()
    assert (index.find(random_keys(10_000, seed=1)) == -1).all()


def test_it_is_a_dict() -> None:
    order, index, mirror = np.random.default_rng(0), KeyIndex(), {}
    names = [bytes([n % 7]) * 8 + n.to_bytes(8, "big") for n in range(3000)]
    for step in range(60):
        chosen = order.integers(0, 3000, 40)  # repeated keys within a batch, too
        values = order.integers(0, 2**62, 40)
        index.insert(as_array([names[n] for n in chosen]), values)
        mirror.update({names[n]: int(value) for n, value in zip(chosen, values, strict=True)})
        if step % 20 == 19:
            kept = index.values() % 3 != 0
            index.keep(kept)
            mirror = {name: value for name, value in mirror.items() if value % 3}
        assert len(index) == len(mirror)
    assert index.find(as_array(names)).tolist() == [mirror.get(name, -1) for name in names]


@pytest.mark.parametrize("keys", [np.zeros((1, 2), np.uint64), np.full((1, 2), 2**64 - 1, np.uint64)])
def test_keys_at_the_ends_of_the_range(keys: np.ndarray) -> None:
    index = KeyIndex()
    assert index.find(keys).tolist() == [-1]
    index.insert(keys, np.array([5]))
    assert index.find(keys).tolist() == [5] and index.find(as_array([])).tolist() == []
