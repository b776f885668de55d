from __future__ import annotations

import multiprocessing
import os
import random
import sys
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from stored import SPACE, is_right, key, needs_fork, tensor

from lightning_freeze.cache.store import folder, writer
from lightning_freeze.cache.store.sizes import default_memory
from lightning_freeze.cache.store.store import Store, open_store
from lightning_freeze.errors import ConfigurationError

ENTRY = 2000 * 4 + 64


def fill(store: Store, numbers: range, space: bytes = SPACE) -> None:
    for start in range(numbers.start, numbers.stop, 8):
        some = range(start, min(start + 8, numbers.stop))
        store.put(space, [key(n) for n in some], [tensor(n) for n in some])


def count(store: Store, numbers: range, space: bytes = SPACE) -> int:
    rows = store.get(space, [key(n) for n in numbers])
    assert all(row is None or is_right(n, row) for n, row in zip(numbers, rows, strict=True))
    return sum(row is not None for row in rows)


TENSORS = {
    "float32": torch.tensor([[float("nan"), -0.0], [float("inf"), 1e-42]]),
    "float16": torch.randn(3, 5).half(),
    "bfloat16": torch.randn(7, 1, 3).bfloat16(),
    "float64": torch.randn(2, 3, 4, dtype=torch.float64),
    "int64": torch.tensor([-(2**62), 5]),
    "int32": torch.arange(5, dtype=torch.int32),
    "uint8": torch.arange(5, dtype=torch.uint8),
    "bool": torch.tensor([True, False, True]),
    "complex64": torch.randn(3, dtype=torch.complex64),
    "scalar": torch.tensor(3.5),
    "empty": torch.zeros(0, 768),
    "transposed": torch.randn(4, 6).t(),
    "a row of a batch": torch.randn(3, 9, 4)[1, 2:7],
    "six dimensions": torch.randn(1, 2, 1, 3, 1, 2),
}


@pytest.mark.parametrize("place", ["memory", "disk", "reopened"])
def test_what_comes_back_is_what_was_put(place: str, tmp_path: Path) -> None:
    store = open_store(None if place == "memory" else tmp_path, 2**20 if place == "memory" else 0)
    keys = [key(n) for n in range(len(TENSORS))]
    store.put(SPACE, keys, list(TENSORS.values()))
    if place != "memory":
        store.flush()
    if place == "reopened":
        store.close()
        store = open_store(tmp_path)
    with store:
        for (name, put), got in zip(TENSORS.items(), store.get(SPACE, keys), strict=True):
            assert got is not None and got.dtype == put.dtype and got.shape == put.shape, name
            assert got.contiguous().view(-1).view(torch.uint8).equal(put.contiguous().view(-1).view(torch.uint8)), name
        assert store.get(SPACE, [key(99)]) == [None]
        assert store.get(b"m" * 16, keys[:1]) == [None]
        assert (store.stats.hits, store.stats.misses) == (len(TENSORS), 2)
        assert (store.stats.read_bytes > 0) == (place != "memory")


def test_what_is_put_is_a_detached_copy() -> None:
    store, given = open_store(max_memory="1MB"), torch.ones(4, requires_grad=True)
    store.put(SPACE, [key(0)], [given])
    with torch.no_grad():
        given.zero_()
    (found,) = store.get(SPACE, [key(0)])
    assert found is not None and found.sum() == 4 and not found.requires_grad


def test_a_tensor_outlives_its_eviction_and_its_store(tmp_path: Path) -> None:
    store = open_store(tmp_path, "1MB")
    fill(store, range(8))
    found = store.get(SPACE, [key(3)])[0]
    store.close()
    assert is_right(3, found)


@pytest.mark.parametrize("order", ["sequential", "shuffled"])
def test_a_full_ram_tier_hits_as_often_as_it_has_room(order: str) -> None:
    samples, room = 400, 0.5
    store = open_store(max_memory=int(samples * ENTRY * room))
    for epoch in range(4):
        numbers = list(range(samples))
        if order == "shuffled":
            random.Random(epoch).shuffle(numbers)
        before = store.stats.hits
        for n in numbers:
            if store.get(SPACE, [key(n)])[0] is None:
                store.put(SPACE, [key(n)], [tensor(n)])
    hits = (store.stats.hits - before) / samples
    assert room - 0.05 < hits <= room
    assert store.stats.memory_bytes < samples * ENTRY * room + 100 * store.stats.entries + 8192


def test_entries_that_are_not_read_any_more_make_room() -> None:
    store, later = open_store(max_memory=400 * ENTRY), b"l" * 16
    fill(store, range(380))
    for _ in range(3):
        for start in range(0, 380, 20):
            numbers = range(start, start + 20)
            if count(store, numbers, later) < 20:
                fill(store, numbers, later)
    assert count(store, range(380), later) == 380
    assert store.stats.evicted == 380 and count(store, range(380)) == 0


def test_two_namespaces_that_are_both_read_do_not_evict_each_other() -> None:
    store, other = open_store(max_memory=400 * ENTRY), b"l" * 16
    for _ in range(5):
        for n in range(600):
            for space in (SPACE, other):
                if not count(store, range(n, n + 1), space):
                    fill(store, range(n, n + 1), space)
    assert store.stats.evicted == 0 and store.stats.entries > 380


def test_the_second_run_hits_from_its_first_look_up(tmp_path: Path) -> None:
    with open_store(tmp_path, 0) as store:
        fill(store, range(30))
    with open_store(tmp_path, "1MB") as store:
        assert count(store, range(40)) == 30
        read = store.stats.read_bytes
        assert count(store, range(30)) == 30 and store.stats.read_bytes == read, "the second time it comes from RAM"


def test_an_entry_can_be_read_before_it_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    with open_store(tmp_path, 0) as store:
        write = store._writer._write
        store._writer._write = lambda entries: (release.wait(10), write(entries))
        fill(store, range(8))
        assert count(store, range(8)) == 8 and store.stats.read_bytes == 0
        release.set()
        store.flush()
        assert count(store, range(8)) == 8 and store.stats.read_bytes > 0


def test_put_does_not_wait_for_a_slow_disk_nor_take_memory_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "MOST_WAITING", 10 * ENTRY)
    release = threading.Event()
    with open_store(tmp_path, 0) as store:
        write = store._writer._write
        store._writer._write = lambda entries: (release.wait(10), write(entries))
        began = time.monotonic()
        fill(store, range(40))
        assert time.monotonic() - began < 5
        assert store.stats.dropped == 30 and store.stats.memory_bytes <= 10 * ENTRY + 8192
        release.set()
        store.flush()
        assert count(store, range(40)) == 10
        fill(store, range(10, 20))
        store.flush()
        assert count(store, range(40)) == 20, "what was left out is taken when it comes again"


@pytest.mark.parametrize("most", [10 * ENTRY, 10])
def test_put_waits_for_a_slow_disk_where_nothing_may_be_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(writer, "MOST_WAITING", most)
    monkeypatch.setattr(writer, "_DELAY", 0.02)
    with open_store(tmp_path, 0) as store:
        with store.waiting_for_disk():
            for number in range(40):
                fill(store, range(number, number + 1))
                assert store.stats.memory_bytes <= max(most, ENTRY) + 8192
        store.flush()
        assert store.stats.dropped == 0 and count(store, range(40)) == 40


def test_put_does_not_wait_for_a_disk_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(entries: object) -> None:
        raise RuntimeError("the disk is gone")

    monkeypatch.setattr(writer, "MOST_WAITING", 10)
    monkeypatch.setattr(writer, "_DELAY", 0.02)
    with open_store(tmp_path, 0) as store:
        store._writer._write = fails
        with pytest.warns(UserWarning, match="the disk is gone"), store.waiting_for_disk():
            fill(store, range(3))
            store.flush()
            fill(store, range(3, 6))
        assert store.stats.dropped == 6


def serve(pipe: Connection, root: Path) -> None:
    store = open_store(root, 0)
    while request := pipe.recv():
        command, numbers = request
        if command == "put":
            store.put(SPACE, [key(n) for n in numbers], [tensor(n) for n in numbers])
            pipe.send(store.flush())
        else:
            rows = store.get(SPACE, [key(n) for n in numbers])
            pipe.send([is_right(n, row) for n, row in zip(numbers, rows, strict=True)])
    store.close()


@needs_fork
def test_processes_share_a_folder_while_both_run(tmp_path: Path) -> None:
    context, pipes, processes = multiprocessing.get_context("fork"), [], []
    for _ in range(2):
        pipe, theirs = context.Pipe()
        processes.append(context.Process(target=serve, args=(theirs, tmp_path)))
        processes[-1].start()
        pipes.append(pipe)

    def tell(who: int, *request: object) -> object:
        pipes[who].send(request)
        assert pipes[who].poll(20)
        return pipes[who].recv()

    assert tell(1, "get", [1, 2]) == [False, False]
    tell(0, "put", [1, 2])
    assert tell(1, "get", [1, 2, 3]) == [True, True, False]
    tell(1, "put", [2, 3])
    assert tell(0, "get", [1, 2, 3]) == [True, True, True]
    for pipe, process in zip(pipes, processes, strict=True):
        pipe.send(None)
        process.join(20)
        assert process.exitcode == 0
    with open_store(tmp_path) as store:
        assert store.get(SPACE, [key(3)])[0] is not None and store.stats.entries == 3


def test_two_stores_of_one_process_share_a_folder(tmp_path: Path) -> None:
    with open_store(tmp_path, 0) as one, open_store(tmp_path, 0) as two:
        fill(one, range(8))
        one.flush()
        assert count(two, range(8)) == 8
        one.close()
        assert count(two, range(8)) == 8
        fill(one, range(8, 16))
        one.flush()
        assert count(two, range(16)) == 16


@needs_fork
def test_both_sides_of_a_fork_go_on(tmp_path: Path) -> None:
    with open_store(tmp_path, 0) as store:
        fill(store, range(64))
        # Some of it is not written yet: it stays with the parent.
        for child in range(3):
            pid = os.fork()
            if pid == 0:
                ok = False
                try:
                    fill(store, range(100 + child * 8, 108 + child * 8))
                    store.flush()
                    ok = count(store, range(100 + child * 8, 108 + child * 8)) == 8
                finally:
                    os._exit(0 if ok else 1)
            assert os.waitpid(pid, 0)[1] == 0
        fill(store, range(64, 80))
        store.flush()
        assert count(store, range(80)) == 80 and count(store, range(100, 124)) == 24


def test_threads_may_share_a_store(tmp_path: Path) -> None:
    wrong: list[int] = []

    def work(store: Store, seed: int) -> None:
        order = random.Random(seed)
        for _ in range(60):
            n = order.randrange(50)
            row = store.get(SPACE, [key(n)])[0]
            if row is None:
                store.put(SPACE, [key(n)], [tensor(n)])
            elif not is_right(n, row):
                wrong.append(n)

    with open_store(tmp_path, 20 * ENTRY) as store:
        threads = [threading.Thread(target=work, args=(store, seed)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        store.flush()
        assert not wrong and count(store, range(50)) > 40


def test_max_disk_removes_what_has_been_idle_and_then_stops(tmp_path: Path) -> None:
    old, busy = b"o" * 16, b"b" * 16
    with open_store(tmp_path, 0) as store:
        fill(store, range(40), old)
        fill(store, range(40), busy)
    long_ago = time.time() - 2 * folder.IDLE
    os.utime(tmp_path / old.hex() / folder.INFO, (long_ago, long_ago))
    with open_store(tmp_path, 0, max_disk="1MB") as store:
        fill(store, range(40))
        store.flush()
        assert count(store, range(40)) == 40 and not (tmp_path / old.hex()).exists()
        fill(store, range(40, 80))
        with pytest.warns(UserWarning, match=r"has reached max_disk \(976.6 KiB\)"):
            store.flush()
        assert count(store, range(40), busy) == 40, "used a moment ago, perhaps by another run"
        assert store.stats.dropped == 40 and count(store, range(80)) == 40


def test_a_namespace_that_is_removed_under_a_run_is_filled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_freeze.cache.store.disk._LOOK_AGAIN", 0.0)
    with open_store(tmp_path, 0) as store:
        fill(store, range(8))
        store.flush()
        folder.remove(folder.namespaces(tmp_path)[0])
        assert count(store, range(8)) == 0
        fill(store, range(8))
        store.flush()
        assert count(store, range(8)) == 8 and len(folder.namespaces(tmp_path)) == 1


def test_the_default_memory_is_shared_by_the_processes_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_freeze.cache.store.sizes.available_memory", lambda: 64 * 2**30)
    assert default_memory() == 16 * 2**30
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert default_memory() == 2 * 2**30 and default_memory(4) == 4 * 2**30


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_memory": "4 gigs"}, ["max_memory is '4 gigs'", "'GiB'"]),
        ({"max_memory": "lots"}, ["expected a size like '4GiB'"]),
        ({"max_memory": -1}, ["max_memory is -1"]),
        ({"max_memory": True}, ["True"]),
        ({"max_disk": "1GiB"}, ["without a cache_dir"]),
        ({"cache_dir": __file__}, ["a file: expected a folder"]),
    ],
)
def test_a_wrong_setup_is_named(options: dict[str, object], words: list[str]) -> None:
    with pytest.raises(ConfigurationError) as error:
        open_store(**options)
    assert all(word in str(error.value) for word in words)


def test_without_lmdb_there_is_still_the_ram_tier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lmdb", None)
    for name in ("disk", "lmdb_environment"):
        monkeypatch.delitem(sys.modules, f"lightning_freeze.cache.store.{name}", raising=False)
    with open_store(max_memory="1MB") as store:
        fill(store, range(8))
        assert count(store, range(8)) == 8
    with pytest.raises(ConfigurationError, match="pip install 'lmdb>=3'"):
        open_store(tmp_path)


def test_what_cannot_be_stored_is_named() -> None:
    store = open_store(max_memory="1MB")
    with pytest.raises(ValueError, match="A key has 3 bytes: expected 16"):
        store.put(SPACE, [b"abc"], [torch.ones(1)])
    with pytest.raises(ValueError, match="A namespace has 3 bytes"):
        store.get(b"abc", [key(0)])
    with pytest.raises(ValueError, match=r"torch\.uint16"):
        store.put(SPACE, [key(0)], [torch.ones(1, dtype=torch.uint16)])
    with pytest.raises(ValueError, match="7 dimensions"):
        store.put(SPACE, [key(0)], [torch.ones(1, 1, 1, 1, 1, 1, 1)])
    with pytest.raises(ValueError):
        store.put(SPACE, [key(0), key(1)], [torch.ones(1)])
    assert store.get(SPACE, [key(0)]) == [None]
