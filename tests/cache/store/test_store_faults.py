"""Failures of disks and processes cause a miss and one warning, but no wrong entry, and never end a run."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import lmdb
import pytest
import torch
from stored import SPACE, is_right, key, needs_fork, tensor

from lightning_freeze.cache.store import disk, folder, lmdb_environment
from lightning_freeze.cache.store.lmdb_environment import Environment
from lightning_freeze.cache.store.store import Store, open_store
from lightning_freeze.cache.store.writer import WriteBehind

ROW = 2000 * 4 + 64
NOBODY = 65534


def fill(store: Store, count: int) -> None:
    store.put(SPACE, [key(n) for n in range(count)], [tensor(n) for n in range(count)])
    store.flush()


def found(store: Store, count: int) -> list[int]:
    rows = store.get(SPACE, [key(n) for n in range(count)])
    assert all(row is None or is_right(n, row) for n, row in enumerate(rows))
    return [n for n, row in enumerate(rows) if row is not None]


def data_file(root: Path) -> Path:
    return root / SPACE.hex() / folder.DATA


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    with open_store(tmp_path / "cache", 0) as store:
        fill(store, 40)
    return tmp_path / "cache"


def in_child(work: Callable[[], None]) -> int:
    """Run in a forked process; returns its exit status, negative for a signal."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(60)
    assert process.exitcode is not None
    return process.exitcode


def write_until_killed(root: Path, pipe: Connection) -> None:
    store = open_store(root, 0)
    for start in range(0, 10**6, 4):
        numbers = range(start, start + 4)
        store.put(SPACE, [key(n) for n in numbers], [tensor(n) for n in numbers])
        if start % 16 == 12:
            store.flush()
            pipe.send(start + 4)


@pytest.mark.slow
@needs_fork
def test_kill_9_at_any_moment_loses_only_what_was_not_flushed(tmp_path: Path) -> None:
    context, order, flushed, kills = multiprocessing.get_context("fork"), random.Random(0), 0, 0
    for _ in range(10):
        ours, theirs = context.Pipe()
        writers = [context.Process(target=write_until_killed, args=(tmp_path, theirs)) for _ in range(2)]
        for process in writers:
            process.start()
        assert ours.poll(30)
        time.sleep(order.uniform(0, 0.15))
        for process in writers:
            os.kill(process.pid, signal.SIGKILL)
            process.join(20)
            kills += process.exitcode == -signal.SIGKILL
        while ours.poll(0):
            flushed = max(flushed, ours.recv())
        with open_store(tmp_path, 0) as store:
            there = found(store, flushed + 100)
            assert there[:flushed] == list(range(flushed)) and store.stats.recovered == 0
            # A writer that died while holding the lock blocks no other process.
            store.put(SPACE, [os.urandom(16)], [tensor(0)])
            store.flush()
    assert kills == 20 and flushed > 0
    with Environment(tmp_path / SPACE.hex(), readonly=False) as opened:
        assert opened.problem() == ""


@pytest.mark.parametrize("place", ["payload", "header", "checksum"])
def test_a_damaged_entry_is_a_miss_and_is_repaired_by_the_next_put(filled: Path, place: str) -> None:
    content = bytearray(data_file(filled).read_bytes())
    start = content.index(tensor(7).numpy().tobytes()[:64])
    content[start + {"payload": 3000, "header": -64 + 16, "checksum": -64}[place]] ^= 1
    data_file(filled).write_bytes(content)
    with open_store(filled, 0) as store:
        with pytest.warns(UserWarning, match="damaged entries, which are computed again") as said:
            assert found(store, 40) == [n for n in range(40) if n != 7]
            assert len(found(store, 40)) == 39
        assert len(said) == 1 and store.stats.recovered == 2
        fill(store, 40)
        assert len(found(store, 40)) == 40
    with open_store(filled, 0) as store:
        assert len(found(store, 40)) == 40


def test_a_sound_entry_under_another_key_is_not_taken_for_it(filled: Path) -> None:
    with Environment(filled / SPACE.hex(), readonly=False) as opened:
        (other,) = opened.read([key(3)], lambda _, data: bytes(data))
        opened.write([(key(4), other, True)])
    with open_store(filled, 0) as store, pytest.warns(UserWarning, match="damaged"):
        assert found(store, 6) == [0, 1, 2, 3, 5]


@pytest.mark.parametrize("size", [0, 100, 4096, 9000, 200_000])
def test_a_file_that_was_cut_short_is_not_read(filled: Path, size: int) -> None:
    os.truncate(data_file(filled), size)
    with open_store(filled, "1MB") as store:
        if size == 0:  # LMDB takes an empty file for a new one, and so may we
            assert found(store, 40) == []
        else:
            with pytest.warns(UserWarning, match=f"cannot be read.*prune {filled} --namespace 6e6e6e6e") as said:
                assert found(store, 40) == []
            assert len(said) == 1
        fill(store, 40)
        assert len(found(store, 40)) == 40, "in RAM it goes on"


def test_a_damaged_structure_is_found_before_it_is_walked(filled: Path) -> None:
    pytest.importorskip("lmdb.verify")
    content = bytearray(data_file(filled).read_bytes())
    place = content.index(key(5)) - 8  # the header of its node in the tree
    content[place : place + 8] = b"\xff" * 8
    data_file(filled).write_bytes(content)
    with open_store(filled, 0) as store, pytest.warns(UserWarning, match="cannot be read"):
        assert found(store, 40) == []


def test_a_file_of_something_else_is_not_read(filled: Path) -> None:
    data_file(filled).write_bytes(b"\x00garbage " * 10_000)
    with open_store(filled, 0) as store, pytest.warns(UserWarning, match="cannot be read"):
        assert found(store, 40) == []


@pytest.mark.parametrize("marker", ['{"version": 99}', "torn {"])
def test_a_cache_of_another_version_is_left_alone(filled: Path, marker: str) -> None:
    (filled / folder.MARKER).write_text(marker)
    before = data_file(filled).read_bytes()
    with pytest.warns(UserWarning, match="holds a cache of version .* does not read") as said:
        store = open_store(filled, "1MB")
    with store:
        assert found(store, 40) == []
        fill(store, 40)
        assert len(found(store, 40)) == 40
    assert len(said) == 1 and data_file(filled).read_bytes() == before


def test_a_folder_that_cannot_be_made_leaves_the_ram_tier(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="cannot be written"):
        store = open_store(tmp_path / "file" / "cache", "1MB")
    fill(store, 4)
    assert len(found(store, 4)) == 4


@needs_fork
@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can become nobody")
def test_a_read_only_folder_is_read(filled: Path) -> None:
    for path in (filled, *filled.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    for path in filled.parents:
        if path.stat().st_uid == 0 and path != Path("/") and not path.stat().st_mode & 0o001:
            path.chmod(path.stat().st_mode | 0o011)

    def work() -> None:
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            with open_store(filled, 0) as store:
                assert len(found(store, 40)) == 40
                store.put(SPACE, [key(99)], [tensor(99)])
                store.flush()
                assert store.get(SPACE, [key(99)]) == [None] and store.stats.dropped == 1
        assert ["is read-only" in str(warning.message) for warning in said] == [True]

    assert in_child(work) == 0


@needs_fork
def test_a_disk_that_refuses_to_take_more_ends_the_writing_alone(filled: Path) -> None:
    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        size = data_file(filled).stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100_000, size + 100_000))
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            with open_store(filled, 0) as store:
                fill(store, 200)
                assert found(store, 200) == list(range(40))
                assert store.stats.dropped == 200
                fill(store, 200)
        assert ["nothing more is added" in str(warning.message) for warning in said] == [True]

    assert in_child(work) == 0
    with open_store(filled, 0) as store:
        assert found(store, 200) == list(range(40))


def test_a_disk_that_is_nearly_full_is_left_alone(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(filled)
    monkeypatch.setattr(folder.shutil, "disk_usage", lambda _: usage._replace(free=5 * ROW))
    with open_store(filled, 0) as store:
        with pytest.warns(UserWarning, match="is full: nothing more is added"):
            fill(store, 60)
        assert found(store, 60) == list(range(40))


@needs_fork
def test_a_map_that_is_too_small_grows_in_every_process(tmp_path: Path) -> None:
    path, context = tmp_path / "space", multiprocessing.get_context("fork")
    path.mkdir()
    ours, theirs = context.Pipe()

    def work() -> None:
        theirs.recv()
        with Environment(path, readonly=False, map_size=2**16) as other:
            other.write([(key(n), b"y" * 100_000, False) for n in range(1, 20)])
            theirs.send(other.read([key(19)], lambda _, data: len(data)))

    process = context.Process(target=work)
    process.start()
    with Environment(path, readonly=False, map_size=2**16) as opened:
        opened.write([(key(0), b"x" * 1000, False)])
        ours.send("begin")
        assert ours.poll(20) and ours.recv() == [100_000]
        assert opened.read([key(19)], lambda _, data: len(data)) == [100_000]
        opened.write([(key(30), b"z" * 5_000_000, False)])
        assert opened.read([key(30)], lambda _, data: len(data)) == [5_000_000]
    process.join(20)
    assert process.exitcode == 0


@needs_fork
def test_a_limit_on_address_space_is_no_obstacle(filled: Path) -> None:
    def work() -> None:
        limit = 16 * 2**30
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        with open_store(filled, 0) as store:
            assert len(found(store, 40)) == 40

    assert lmdb_environment._LARGEST_MAP > 2**40
    assert in_child(work) == 0


def test_no_pickle_and_a_marker_that_people_can_read(filled: Path) -> None:
    assert json.loads((filled / folder.MARKER).read_text()) == {"format": "lightning-freeze cache", "version": 1}
    for module in (disk, lmdb_environment, folder):
        assert "pickle" not in Path(module.__file__).read_text().replace("No pickle", "")


def test_what_lmdb_reports_is_not_raised(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_store(filled, 0) as store:
        monkeypatch.setattr(Environment, "read", lambda *_: (_ for _ in ()).throw(lmdb.CorruptedError("mdb_get")))
        with pytest.warns(UserWarning, match="cannot be read"):
            assert found(store, 40) == []
        assert found(store, 40) == []


def within(seconds: float, work: Callable[[], object]) -> None:
    """Fail instead of waiting indefinitely if something never returns."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), "it hangs"


@pytest.fixture
def another_disk(tmp_path: Path) -> Iterator[Path]:
    shared = Path("/dev/shm")
    if not os.access(shared, os.W_OK) or shared.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is only one disk")
    with tempfile.TemporaryDirectory(dir=shared) as name:
        yield Path(name)


def test_what_is_removed_in_mid_run_may_be_filled_again(filled: Path) -> None:
    with open_store(filled, 0) as store:
        assert len(found(store, 40)) == 40
        shutil.rmtree(filled)
        filled.mkdir()
        fill(store, 20)
        assert len(found(store, 40)) == 20 and store.stats.dropped == 0
    with open_store(filled, 0) as store:
        assert len(found(store, 40)) == 20


def test_what_is_left_of_a_mount_point_is_not_written_to(tmp_path: Path, filled: Path, another_disk: Path) -> None:
    place = tmp_path / "mounted"
    place.symlink_to(filled, target_is_directory=True)
    with open_store(place, "1MB") as store:
        assert len(found(store, 40)) == 40
        place.unlink()
        place.symlink_to(another_disk, target_is_directory=True)
        with pytest.warns(UserWarning, match="removed or unmounted.*nothing more is added") as said:
            fill(store, 60)
            fill(store, 60)
        assert len(said) == 1 and not any(another_disk.iterdir())
        assert found(store, 60) == list(range(60)), "in RAM it goes on"


@pytest.mark.parametrize("left", ["nothing", "a file"])
def test_a_folder_that_vanishes_in_mid_run_ends_the_writing_alone(tmp_path: Path, left: str) -> None:
    root = tmp_path / "disk" / "cache"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with open_store(root, "1MB") as store:
            store.put(SPACE, [key(n) for n in range(20)], [tensor(n) for n in range(20)])
            store.flush()
            shutil.rmtree(root.parent)
            if left == "a file":
                root.parent.touch()
            for space in (SPACE, b"m" * 16):
                for start in (20, 30):
                    numbers = range(start, start + 10)
                    store.put(space, [key(n) for n in numbers], [tensor(n) for n in numbers])
                    within(20, store.flush)
            assert found(store, 50) == list(range(40)), "in RAM it goes on"
            assert store.get(b"o" * 16, [key(0)]) == [None]
            assert store.stats.dropped == 40 and store.stats.disk_bytes == 0
            within(20, store.close)
    assert len(said) == 1 and "cannot be written" in str(said[0].message)
    assert "nothing more is added" in str(said[0].message)
    assert not root.exists()


def test_a_folder_that_vanishes_leaves_misses_where_nothing_is_in_ram(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "_LOOK_AGAIN", 0.0)
    with open_store(tmp_path / "cache", 0) as store:
        fill(store, 10)
        shutil.rmtree(tmp_path / "cache")
        assert found(store, 10) == []
        with pytest.warns(UserWarning, match="nothing more is added") as said:
            fill(store, 10)
        assert found(store, 10) == [] and len(said) == 1


def test_a_disk_that_does_not_answer_is_a_miss(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(path: Path, **options: bool) -> os.stat_result:
        if filled in path.parents:
            raise OSError(errno.ENOTCONN, "Transport endpoint is not connected", str(path))
        return real(path, **options)

    real = Path.stat
    with open_store(filled, 0) as store:
        monkeypatch.setattr(Path, "stat", gone)
        with pytest.warns(UserWarning, match="cannot be read .*not connected") as said:
            assert found(store, 4) == found(store, 4) == []
        assert len(said) == 1 and "prune" not in str(said[0].message)


@pytest.mark.parametrize("error", [KeyError("odd"), MemoryError(), SystemExit(3), PermissionError("no")])
def test_the_run_continues_after_any_error_in_the_writer(tmp_path: Path, error: BaseException) -> None:
    def fails(_: object) -> None:
        raise error

    with open_store(tmp_path, "100KB") as store:
        fill(store, 4)
        store._writer._write = fails
        with pytest.warns(UserWarning, match="nothing more is added") as said:
            store.put(SPACE, [key(n) for n in range(4, 40)], [tensor(n) for n in range(4, 40)])
            within(20, store._writer.flush)
            store.flush()
            held = found(store, 40)
            assert held == list(range(12)), "what RAM has, and nothing that was dropped"
            assert store._writer.extra_bytes == 0 and store.stats.dropped >= 36
            fill(store, 60)
            within(20, store.flush)
            assert found(store, 60) == held
        assert len(said) == 1
        within(20, store.close)
    with open_store(tmp_path, 0) as store:
        assert found(store, 40) == [0, 1, 2, 3]


def test_a_dead_writer_blocks_no_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WriteBehind, "_run", lambda _: None)
    with open_store(tmp_path, 0) as store:
        store.put(SPACE, [key(0)], [tensor(0)])
        assert found(store, 1) == [0], "it is still waiting"
        with pytest.warns(UserWarning, match="thread that writes has died"):
            within(20, store._writer.flush)
            store.flush()
        assert found(store, 1) == [] and store.stats.dropped == 1
        within(20, store.close)


def test_an_error_in_the_checksum_is_no_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise ImportError("no xxhash")

    monkeypatch.setattr(disk, "seal", fails)
    with open_store(tmp_path, 0) as store:
        store.put(SPACE, [key(0)], [tensor(0)])
        with pytest.warns(UserWarning, match="no xxhash"):
            within(20, store._writer.flush)
            store.flush()
        assert found(store, 1) == []


def test_small_entry_before_one_that_makes_room() -> None:
    with open_store(None, 300_000) as store:
        count = 0
        while not store.stats.dropped:
            store.get(SPACE, [key(count)])
            store.put(SPACE, [key(count)], [torch.zeros(300)])
            count += 1
        for number in range(20 * count):  # samples that never come again
            store.get(SPACE, [key(10**6 + number)])
        names = [key(5 * 10**6), key(5 * 10**6 + 1)]
        store.put(SPACE, names, [torch.ones(1), torch.ones(6000)])
        assert [row is None or bool(row.eq(1).all()) for row in store.get(SPACE, names)] == [True, True]


WRITES = """
import os, sys, time
from pathlib import Path
from lightning_freeze.cache.store.lmdb_environment import Environment
environment = Environment(Path(sys.argv[1]), readonly=False)
print("ready", flush=True)
while True:
    environment.write([(os.urandom(16), os.urandom(3000), False) for _ in range(20)])
"""


@pytest.mark.slow
def test_reader_that_may_not_write_sees_no_damage_beside_a_writer(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", WRITES, str(tmp_path)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        try:
            for _ in range(20):
                with Environment(tmp_path, readonly=True) as environment:
                    assert environment.problem() == ""
        finally:
            writer.kill()
