"""The memory that the RAM tier allocates, and how much of it the entries need."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import pytest
from stored import SPACE, is_right, key, tensor

from lightning_freeze.cache.store.memory import MemoryTier
from lightning_freeze.cache.store.store import open_store

MIB = 1024**2
BUDGET = 4096 * MIB
ENTRY = 2000 * 4 + 64


def test_a_namespace_of_one_entry_takes_little() -> None:
    with open_store(max_memory=BUDGET) as store:
        for n in range(60):
            store.put(n.to_bytes(16, "big"), [key(n)], [tensor(n)])
        assert store.stats.memory_bytes <= 60 * (MIB + 24 * 256)
        assert all(is_right(n, store.get(n.to_bytes(16, "big"), [key(n)])[0]) for n in range(60))
        assert store.stats.evicted == store.stats.dropped == 0


def test_small_namespaces_do_not_eat_the_budget_of_others() -> None:
    with open_store(max_memory=256 * MIB) as store:
        for n in range(200):
            store.put(n.to_bytes(16, "big"), [key(n)], [tensor(n)])
        assert store.stats.entries == 200 and store.stats.dropped == 0


@pytest.mark.parametrize(("size", "first"), [(8000, MIB), (3 * MIB, 3 * MIB), (80 * MIB, 80 * MIB)])
def test_slabs_double_up_to_64_mib(size: int, first: int) -> None:
    tier, sizes, taken = MemoryTier(BUDGET), [], 0
    while len(sizes) < 9:
        place = tier.reserve(SPACE, size)
        assert place is not None and len(place.data) == size
        if tier.bytes > taken:
            sizes.append(tier.bytes - taken)
            taken = tier.bytes
    assert sizes[0] == first
    for before, after in itertools.pairwise(sizes):
        assert after == max(size, min(2 * before, 64 * MIB))


def test_all_slabs_are_read_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_freeze.cache.store.memory._FIRST_SLAB", 2 * ENTRY)
    with open_store(max_memory="32MiB") as store:
        for n in range(800):
            store.put(SPACE, [key(n)], [tensor(n)])
        assert len(store._memory._spaces[SPACE].slabs) > 10
        rows = store.get(SPACE, [key(n) for n in range(800)])
        assert all(is_right(n, row) for n, row in enumerate(rows))


def test_stored_bytes_are_those_of_the_entries() -> None:
    with open_store(max_memory=BUDGET) as store:
        assert store.stats.stored_bytes == 0
        store.put(SPACE, [key(n) for n in range(60)], [tensor(n) for n in range(60)])
        stats = store.stats
        assert 60 * ENTRY <= stats.stored_bytes < 61 * ENTRY, "about 0.5 MB"
        assert stats.memory_bytes >= MIB


def test_with_a_disk_stored_bytes_are_those_on_disk(tmp_path: Path) -> None:
    with open_store(tmp_path / "cache", BUDGET) as store:
        store.put(SPACE, [key(n) for n in range(60)], [tensor(n) for n in range(60)])
        store.flush()
        stats = store.stats
        assert stats.stored_bytes == stats.disk_bytes >= 60 * ENTRY
        # Where nothing can be written, it is what RAM holds.
        shutil.rmtree(tmp_path / "cache")
        assert store.stats.disk_bytes == 0 and store.stats.stored_bytes == 60 * ENTRY


def test_what_is_full_keeps_what_it_has() -> None:
    with open_store(max_memory="2MiB") as store:
        for n in range(600):
            store.put(SPACE, [key(n)], [tensor(n)])
        rows = store.get(SPACE, [key(n) for n in range(600)])
        held = [n for n, row in enumerate(rows) if row is not None]
        assert held == list(range(len(held))) and len(held) > 0.95 * 2 * MIB / (ENTRY + 64)
        assert len(held) == store.stats.entries
