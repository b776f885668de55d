"""A cache folder that other users can write to: links are not followed, and contents are not trusted."""

from __future__ import annotations

import json
import os
import random
import stat
import struct
import sys
import warnings
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from stored import SPACE, is_right, key, needs_fork, tensor

from lightning_freeze.cache.store import folder
from lightning_freeze.cache.store.store import Store, open_store
from lightning_freeze.cli.command_line import main
from lightning_freeze.errors import ConfigurationError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="links and permissions of POSIX")

NOBODY = 65534
COUNT = 40
SECRET = "export PATH=/usr/bin\n" * 4000
as_root = pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can become nobody")


def fill(store: Store, count: int = COUNT) -> None:
    store.put(SPACE, [key(n) for n in range(count)], [tensor(n) for n in range(count)])
    store.flush()


def found(store: Store, count: int = COUNT) -> int:
    rows = store.get(SPACE, [key(n) for n in range(count)])
    assert all(row is None or is_right(n, row) for n, row in enumerate(rows))
    return sum(row is not None for row in rows)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    with open_store(tmp_path / "cache", 0) as store:
        store.declare(SPACE, {"model": "BertModel", "tower": "", "blocks": 3, "of": 12})
        fill(store)
    return tmp_path / "cache"


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "bashrc"
    path.write_text(SECRET)
    os.utime(path, (1, 1))
    return path


def status_of(*command: object) -> int | str | None:
    try:
        main(["cache", *map(str, command)])
    except SystemExit as end:
        return end.code
    return 0


def in_child(work: Callable[[], None]) -> int:
    """Run in a forked process; returns its exit status, negative for a signal."""
    process = get_context("fork").Process(target=work)
    process.start()
    process.join(60)
    if process.exitcode is None:
        process.kill()
        raise AssertionError("it hangs")
    return process.exitcode


def use(root: Path) -> list[str]:
    """A run that reads and writes; returns its warnings. In RAM it goes on."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with open_store(root, "1MB") as store:
            found(store)
            store.note(SPACE, 10)
            store.noted(SPACE)
            fill(store)
            assert found(store) == COUNT
    return [str(warning.message) for warning in said]


def plant(link: Path, target: Path) -> None:
    link.unlink(missing_ok=True)
    link.symlink_to(target)


@pytest.mark.parametrize("name", [folder.DATA, folder.LOCK])
def test_link_in_place_of_a_database_file_is_refused(cache: Path, victim: Path, name: str) -> None:
    plant(cache / SPACE.hex() / name, victim)
    said = use(cache)
    assert len(said) == 1 and f"{name} is a symbolic link" in said[0]
    status_of("info", cache)
    status_of("verify", cache)
    assert status_of("prune", cache, "--all") == 0
    assert victim.read_text() == SECRET and victim.stat().st_mtime == 1


@pytest.mark.parametrize("name", [folder.DATA, folder.LOCK])
def test_dangling_link_creates_nothing(cache: Path, tmp_path: Path, name: str) -> None:
    plant(cache / SPACE.hex() / name, tmp_path / "created")
    use(cache)
    status_of("info", cache)
    status_of("verify", cache)
    assert not (tmp_path / "created").exists()


def test_hard_link_is_refused(cache: Path, victim: Path) -> None:
    lock = cache / SPACE.hex() / folder.LOCK
    lock.unlink()
    lock.hardlink_to(victim)
    assert "lock.mdb is a hard link" in use(cache)[0]
    status_of("verify", cache)
    assert victim.read_text() == SECRET


def test_link_in_place_of_a_namespace_is_refused(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = tmp_path / "elsewhere"
    (cache / SPACE.hex()).rename(elsewhere)
    (cache / SPACE.hex()).symlink_to(elsewhere, target_is_directory=True)
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in elsewhere.iterdir()}
    assert "is a symbolic link" in use(cache)[0]
    assert status_of("info", cache) == status_of("verify", cache) == 0
    said = capsys.readouterr().out
    assert said.count("6e6e6e6e: is not used, because it is a link") == 2 and "0 namespaces" in said
    assert status_of("prune", cache, "--all") == 0
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in elsewhere.iterdir()} == before
    assert not any(cache.iterdir())


@pytest.mark.parametrize("name", [folder.INFO, "independent.json"])
def test_link_in_place_of_a_description_is_neither_read_nor_touched(
    cache: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.json"
    other.write_text('{"model": "PrivateModel", "elements": 99999}')
    os.utime(other, (1, 1))
    plant(cache / SPACE.hex() / name, other)
    with open_store(cache, 0) as store:
        assert store.noted(SPACE) == 0 and found(store) == COUNT
        store.note(SPACE, 10)
        fill(store, COUNT + 1)
    assert status_of("info", cache) == 0
    assert "PrivateModel" not in capsys.readouterr().out
    assert "PrivateModel" in other.read_text() and other.stat().st_mtime == 1


def test_link_in_place_of_the_marker_is_not_followed(cache: Path, victim: Path, tmp_path: Path) -> None:
    real = tmp_path / "marker.json"
    (cache / folder.MARKER).rename(real)
    plant(cache / folder.MARKER, real)
    assert "holds a cache of version ?" in use(cache)[0]
    for command in ("info", "verify"):
        assert status_of(command, cache) == 2
    plant(cache / folder.MARKER, tmp_path / "created")
    use(cache)
    assert not (tmp_path / "created").exists()


def test_no_temporary_file_has_a_name_that_can_be_guessed(cache: Path, victim: Path) -> None:
    namespace = cache / SPACE.hex()
    (namespace / folder.INFO).unlink()
    for name in (folder.INFO, "independent.json"):
        (namespace / f"{name}.{os.getpid()}.part").symlink_to(victim)
    with open_store(cache, 0) as store:
        store.note(SPACE, 10)
        fill(store, COUNT + 1)
    assert victim.read_text() == SECRET
    assert json.loads((namespace / "independent.json").read_text()) == {"elements": 10}


def test_new_folders_and_files_are_private(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with open_store(tmp_path / "new" / "cache", 0) as store:
            store.note(SPACE, 10)
            fill(store)
            store.note(SPACE, 20)
    finally:
        os.umask(before)
    paths = [tmp_path / "new" / "cache", *(tmp_path / "new" / "cache").rglob("*")]
    modes = {stat.S_IMODE(path.stat().st_mode) for path in paths if path.is_dir()}
    assert modes == {0o700}
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths if path.is_file()} == {0o600}


def test_info_writes_nothing(cache: Path) -> None:
    (cache / SPACE.hex() / folder.LOCK).unlink()
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    assert status_of("info", cache) == status_of("verify", cache) == 0
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*")} == before


@needs_fork
def test_a_fifo_blocks_no_reader(cache: Path) -> None:
    namespace = cache / SPACE.hex()
    for name in (folder.INFO, "independent.json"):
        (namespace / name).unlink(missing_ok=True)
        os.mkfifo(namespace / name)

    def work() -> None:
        assert status_of("info", cache) == status_of("verify", cache) == 0
        assert not [message for message in use(cache) if "cannot" in message]

    assert in_child(work) == 0
    (namespace / folder.DATA).unlink()
    os.mkfifo(namespace / folder.DATA)
    assert in_child(lambda: bool(use(cache)) and None) == 0
    (cache / folder.MARKER).unlink()
    os.mkfifo(cache / folder.MARKER)
    assert in_child(lambda: bool(use(cache)) and None) == 0


@pytest.mark.parametrize(
    "content",
    [
        '{"model": "[bold red]Bert[/] [/nothing]", "blocks": "[link=x]3", "of": 12}',
        '{"model": "\\u001b[2J\\u001b]0;title\\u0007\\u202egnp", "blocks": 3, "of": 12}',
        '{"model": ' + "[" * 20_000 + "]" * 20_000 + "}",
        "[" * 200_000,
        '{"model": "' + "x" * 10_000 + '"}',
        '{"model": "\\ud800", "blocks": Infinity, "of": {"a": 1}}',
        '{"model": ' + "9" * 5_000 + "}",
        '"text"',
        "\x00\xff",
    ],
)
def test_info_prints_a_crafted_description_safely(
    cache: Path, content: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    (cache / SPACE.hex() / folder.INFO).write_text(content, encoding="latin-1")
    assert status_of("info", cache) == 0
    said = capsys.readouterr()
    assert said.out.endswith(" KiB\n") and "Traceback" not in said.err
    assert all(character.isprintable() or character == "\n" for character in said.out)
    assert "x" * 41 not in said.out
    if "bold" in content:
        assert "[bold red]Bert[/] [/nothing]" in said.out


@pytest.mark.parametrize("content", ['{"version": Infinity}', '{"version": "1"}', "[" * 50_000, '{"version": true}'])
def test_crafted_marker_is_another_version(cache: Path, content: str) -> None:
    (cache / folder.MARKER).write_text(content)
    assert "holds a cache of version ?" in use(cache)[0]
    assert status_of("info", cache) == 2


@pytest.mark.parametrize("content", ['{"elements": Infinity}', '{"elements": -1}', "[" * 50_000, "{}"])
def test_a_crafted_note_is_ignored(cache: Path, content: str) -> None:
    (cache / SPACE.hex() / "independent.json").write_text(content)
    with open_store(cache, 0) as store:
        assert store.noted(SPACE) <= 0


def forge_header(content: bytearray, offset: int, value: int, form: str = "<Q") -> None:
    for meta in (16, 4096 + 16):
        struct.pack_into(form, content, meta + offset, value)


FORGERIES: dict[str, Callable[[bytearray], None]] = {
    "map size": lambda content: forge_header(content, 16, 2**60),
    "page size 0": lambda content: forge_header(content, 24, 0, "<I"),
    "page size 1": lambda content: forge_header(content, 24, 1, "<I"),
    "page size 32768": lambda content: forge_header(content, 24, 32768, "<I"),
    "last page": lambda content: forge_header(content, 120, 2**40),
    "root": lambda content: forge_header(content, 24 + 48 + 40, 2**40),
    "free root": lambda content: forge_header(content, 24 + 40, 2**40),
    "entries": lambda content: forge_header(content, 24 + 48 + 32, 2**40),
    "depth": lambda content: forge_header(content, 24 + 48 + 6, 65535, "<H"),
    "length of a value": lambda content: struct.pack_into("<H", content, content.index(key(5)) - 6, 0x7FFF),
    "node": lambda content: struct.pack_into("<Q", content, content.index(key(5)) - 8, 2**64 - 1),
    "overflow page": lambda content: struct.pack_into("<Q", content, content.index(key(5)) + 16, 2**40),
}


@pytest.mark.fast_cases(5)
@needs_fork
@pytest.mark.parametrize("forgery", FORGERIES)
def test_forged_database_ends_no_process(cache: Path, forgery: str) -> None:
    data = cache / SPACE.hex() / folder.DATA
    content = bytearray(data.read_bytes())
    FORGERIES[forgery](content)
    data.write_bytes(content)
    assert in_child(lambda: sys.exit(status_of("info", cache))) == 0
    assert in_child(lambda: sys.exit(status_of("verify", cache))) in (0, 1)
    assert in_child(lambda: bool(use(cache)) and None) == 0


@pytest.mark.slow
@needs_fork
def test_damaged_or_truncated_database_ends_no_process(cache: Path) -> None:
    data, order = cache / SPACE.hex() / folder.DATA, random.Random(0)
    whole = data.read_bytes()
    tree = [start for start in range(0, len(whole), 4096) if whole[start + 10] & 3]
    for trial in range(25):
        content = bytearray(whole)
        if trial % 3 == 0:
            del content[order.randrange(len(content)) :]
        else:
            for _ in range(5):
                content[order.choice(tree) + order.randrange(4096) if trial % 2 else order.randrange(8192)] ^= 0xFF
        data.write_bytes(content)

        def work() -> None:
            status_of("info", cache)
            status_of("verify", cache)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with open_store(cache, 0) as store:
                    found(store)

        assert in_child(work) == 0, trial


@pytest.mark.parametrize("left", ["folder", "read-only folder", "link", "file"])
def test_prune_leaves_nothing_half_removed(cache: Path, victim: Path, left: str) -> None:
    aside = cache / ".removed-6e6e-1-2"
    if left == "link":
        aside.symlink_to(victim.parent, target_is_directory=True)
    elif left == "file":
        aside.touch()
    else:
        aside.mkdir()
        (aside / folder.DATA).touch()
        aside.chmod(0o500 if left == "read-only folder" else 0o700)
    assert status_of("prune", cache, "--max-size", "1GiB") == 0
    assert sorted(path.name for path in cache.iterdir()) == [SPACE.hex(), folder.MARKER]
    assert victim.read_text() == SECRET
    assert status_of("prune", cache, "--all") == 0
    assert not any(cache.iterdir())


@needs_fork
@as_root
def test_unreadable_folder_ends_no_run(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    (closed / "cache").mkdir(parents=True)
    closed.chmod(0o700)
    for path in tmp_path.parents:
        if path.stat().st_uid == 0 and path != Path("/") and not path.stat().st_mode & 0o001:
            path.chmod(path.stat().st_mode | 0o011)
    tmp_path.chmod(0o755)

    def work() -> None:
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        for root in (closed, closed / "cache", closed / "new"):
            assert len(use(root)) == 1
        assert status_of("info", closed) == 2

    assert in_child(work) == 0


def test_name_that_is_too_long_ends_no_run(tmp_path: Path) -> None:
    assert "nothing is kept on disk" in use(tmp_path / ("n" * 300))[0]
    assert "nothing is kept on disk" in use(tmp_path.joinpath(*["n" * 200] * 30))[0]
    for name in ("info", "verify", "prune"):
        assert status_of(name, tmp_path / ("n" * 300)) == 2


def test_name_that_is_no_path_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"cache_dir is 'a.x00b', not a path"):
        open_store("a\0b")


def test_an_unknown_home_is_a_plain_folder_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with open_store("~no-such-user/cache", "1MB") as store:
        store.put(SPACE, [key(0)], [torch.ones(3)])
