"""A frozen prefix that changes in each step creates a namespace in each step: the number of open files stays small."""

from __future__ import annotations

import os
import random
import shutil
import threading
import time
from pathlib import Path

import pytest
from stored import is_right, key, needs_fork, tensor

from lightning_freeze.cache.store import disk, folder, lmdb_environment
from lightning_freeze.cache.store.lmdb_environment import Environment
from lightning_freeze.cache.store.store import Store, open_store

SPACES = [bytes([n]) * 16 for n in range(40)]
FILES_EACH = 3
needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="no /proc on this system")


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def put(store: Store, space: int, numbers: range = range(3)) -> None:
    store.put(SPACES[space], [key(100 * space + n) for n in numbers], [tensor(100 * space + n) for n in numbers])


def count(store: Store, space: int, numbers: range = range(3)) -> int:
    rows = store.get(SPACES[space], [key(100 * space + n) for n in numbers])
    assert all(row is None or is_right(100 * space + n, row) for n, row in zip(numbers, rows, strict=True))
    return sum(row is not None for row in rows)


@needs_proc
def test_many_namespaces_take_few_file_descriptors(tmp_path: Path) -> None:
    before, most = open_files(), (disk._MOST_OPEN + 1) * FILES_EACH
    with open_store(tmp_path, 0) as store:
        for space in range(40):
            put(store, space)
            store.flush()
            assert open_files() - before <= most
        assert store.stats.entries == 120 and store.stats.disk_bytes >= 120 * 8064
        for space in [*range(40), *range(39, -1, -1)]:
            assert count(store, space) == 3, "what was closed is opened again"
            assert open_files() - before <= most
        assert store.stats.entries == 120 and store.stats.recovered == 0
    assert open_files() == before and not lmdb_environment._living


def test_the_least_recently_used_is_closed(tmp_path: Path) -> None:
    with open_store(tmp_path, 0) as store:
        for space in range(30):
            put(store, space)
            store.flush()
            assert count(store, 0) == 3
        assert len(lmdb_environment._living) == disk._MOST_OPEN
        kept = {int(opened.path.name[:2], 16) for opened in lmdb_environment._living}
        assert kept == {0, *range(31 - disk._MOST_OPEN, 30)}


def test_a_file_is_walked_once_however_often_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    walked: list[str] = []
    monkeypatch.setattr(Environment, "problem", lambda self: walked.append(self.path.name) or "")
    with open_store(tmp_path, 0) as store:
        for space in range(20):
            put(store, space)
        store.flush()
        for _ in range(3):
            assert [count(store, space) for space in range(20)] == [3] * 20
        assert len(walked) == 20
        monkeypatch.setattr("lightning_freeze.cache.store.disk._LOOK_AGAIN", 0.0)
        folder.remove(folder.namespaces(tmp_path)[0])
        with open_store(tmp_path, 0) as other:
            for space in range(20):
                put(other, space)
        assert [count(store, space) for space in range(20)] == [3] * 20
        assert len(walked) > 20, "a new file in its place"


def test_readers_and_the_writer_take_turns_with_what_is_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "_MOST_OPEN", 1)
    wrong: list[BaseException] = []

    def work(store: Store, seed: int) -> None:
        order = random.Random(seed)
        try:
            for _ in range(80):
                space = order.randrange(12)
                if count(store, space) < 3:
                    put(store, space)
                assert store.stats.entries <= 36
        except BaseException as error:
            wrong.append(error)

    # Two stores share the handles of the process.
    with open_store(tmp_path, 0) as one, open_store(tmp_path, 0) as two:
        threads = [threading.Thread(target=work, args=(store, n)) for n, store in enumerate((one, two, one, two))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        assert not wrong
        one.flush()
        two.flush()
        assert sum(count(one, space) for space in range(12)) == 36
        assert len(lmdb_environment._living) <= 2
    assert not lmdb_environment._living


def test_what_is_in_use_is_closed_only_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "_MOST_OPEN", 1)
    inside, go_on = threading.Event(), threading.Event()
    with open_store(tmp_path, 0) as store:
        put(store, 0)
        store.flush()
        tier, sizes = store._disk, []

        def slow(_: bytes, data: memoryview) -> int:
            inside.set()
            assert go_on.wait(20)
            sizes.append(len(bytes(data)))
            return len(data)

        reader = threading.Thread(target=lambda: tier.read(SPACES[0], [key(0)], slow))
        reader.start()
        assert inside.wait(20)
        for space in range(1, 6):  # the writer opens five others at the same time
            put(store, space)
            store.flush()
        assert SPACES[0] not in tier._environments and len(lmdb_environment._living) == 2
        go_on.set()
        reader.join(20)
        assert sizes == [8064] and len(lmdb_environment._living) == 1


@needs_fork
@needs_proc
def test_a_fork_in_mid_run_goes_on_with_few(tmp_path: Path) -> None:
    with open_store(tmp_path, 0) as store:
        for space in range(20):
            put(store, space)
        store.flush()
        pid = os.fork()
        if pid == 0:
            ok = False
            try:
                before = open_files()
                ok = [count(store, space) for space in range(20)] == [3] * 20
                ok = ok and open_files() - before <= disk._MOST_OPEN * FILES_EACH
            finally:
                os._exit(0 if ok else 1)
        assert os.waitpid(pid, 0)[1] == 0
        assert [count(store, space) for space in range(20)] == [3] * 20


def test_a_closed_namespace_that_was_evicted_is_not_counted(tmp_path: Path) -> None:
    with open_store(tmp_path, 0, max_disk="1MB") as store:
        for space in range(20):
            put(store, space)
        store.flush()
        assert store.stats.entries == 60
        long_ago = time.time() - 2 * folder.IDLE
        os.utime(tmp_path / SPACES[0].hex() / folder.INFO, (long_ago, long_ago))
        shutil.rmtree(tmp_path / SPACES[1].hex())
        put(store, 20, range(70))
        with pytest.warns(UserWarning, match="max_disk"):
            store.flush()
        assert not (tmp_path / SPACES[0].hex()).exists() and store.stats.entries == 54
