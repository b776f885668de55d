"""`lightning-freeze cache info|verify|prune` on folders that stores have written."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch
from stored import key, tensor

from lightning_freeze.cache.store import folder
from lightning_freeze.cache.store.store import open_store
from lightning_freeze.cli import command_line

DAY = 86400
SPACES = [bytes([n]) * 16 for n in (0xA1, 0xA2, 0xB3)]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three namespaces, last used 40, 10 and 0 days ago, with 10, 20 and 30 entries."""
    monkeypatch.setenv("COLUMNS", "200")
    root = tmp_path / "cache"
    with open_store(root, 0) as store:
        for number, space in enumerate(SPACES, 1):
            store.declare(space, {"model": "BertModel", "tower": "", "blocks": 3 * number, "of": 12})
            rows = [tensor(n).bfloat16() if number == 2 else tensor(n) for n in range(10 * number)]
            store.put(space, [key(n) for n in range(10 * number)], rows)
    for space, days in zip(SPACES, (40, 10, 0), strict=True):
        when = time.time() - days * DAY
        os.utime(root / space.hex() / folder.INFO, (when, when))
    return root


def held(root: Path) -> list[str]:
    return sorted(namespace.name[:2] for namespace in folder.namespaces(root))


def fails(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    with pytest.raises(SystemExit) as error:
        command_line.main(["cache", *map(str, args)])
    assert error.value.code == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message


def test_info(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command_line.main(["cache", "info", str(cache)])
    title, *rows, last = capsys.readouterr().out.splitlines()
    assert title.split() == ["id", "model", "frozen", "blocks", "dtype", "entries", "size", "last", "used"]
    shown = [row.split() for row in rows]
    assert [row[:7] for row in shown] == [
        ["b3b3b3b3", "BertModel", "9", "of", "12", "float32", "30"],
        ["a2a2a2a2", "BertModel", "6", "of", "12", "bfloat16", "20"],
        ["a1a1a1a1", "BertModel", "3", "of", "12", "float32", "10"],
    ]
    assert [" ".join(row[9:]) for row in shown] == ["just now", "10 d ago", "6 w ago"]
    assert last.startswith(f"{cache}: 3 namespaces, ")


def test_verify(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command_line.main(["cache", "verify", str(cache)])
    assert capsys.readouterr().out == f"{cache}: 60 entries are sound, 0 are damaged\n"
    data = cache / SPACES[2].hex() / folder.DATA
    content = bytearray(data.read_bytes())
    for n in (3, 4):
        content[content.index(tensor(n).numpy().tobytes()[:64]) + 100] ^= 1
    data.write_bytes(content)
    with pytest.raises(SystemExit) as error:
        command_line.main(["cache", "verify", str(cache)])
    said = capsys.readouterr().out
    assert error.value.code == 1
    assert "b3b3b3b3: 2 of 30 entries are damaged" in said and "58 entries are sound, 2 are damaged" in said


def test_verify_of_a_damaged_file(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.truncate(cache / SPACES[0].hex() / folder.DATA, 9000)
    pytest.importorskip("lmdb.verify")
    data = cache / SPACES[1].hex() / folder.DATA
    content = bytearray(data.read_bytes())
    place = content.index(key(5)) - 8  # the header of its node in the tree
    content[place : place + 8] = b"\xff" * 8
    data.write_bytes(content)
    with pytest.raises(SystemExit) as error:
        command_line.main(["cache", "verify", str(cache)])
    said = capsys.readouterr().out
    assert error.value.code == 1
    assert "a1a1a1a1: cannot be read (the file is shorter than its header says)" in said
    assert "a2a2a2a2: " in said and "30 entries are sound, 0 are damaged, 2 unreadable" in said
    command_line.main(["cache", "info", str(cache)])
    assert "damaged" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "left"),
    [
        (["--older-than", "30d"], ["a2", "b3"]),
        (["--older-than", "1w"], ["b3"]),
        (["--namespace", "a2"], ["a1", "b3"]),
        (["--namespace", "a1", "--namespace", "B3"], ["a2"]),
        (["--max-size", "300KB"], ["b3"]),
        (["--max-size", "1GiB"], ["a1", "a2", "b3"]),
        (["--max-size", "0"], []),
        (["--all"], []),
    ],
)
def test_prune(cache: Path, options: list[str], left: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    command_line.main(["cache", "prune", str(cache), *options])
    assert held(cache) == left
    gone = 3 - len(left)
    said = capsys.readouterr().out
    assert f"removed {gone} namespace{'s' * (gone != 1)}, " in said and f"; {len(left)} namespace" in said
    assert not [path for path in cache.iterdir() if path.name.startswith(".removed")]
    with open_store(cache, 0) as store:
        rows = [store.get(space, [key(0)])[0] is not None for space in SPACES]
    assert [name for name, is_there in zip(("a1", "a2", "b3"), rows, strict=True) if is_there] == left


def test_prune_while_a_run_reads(cache: Path) -> None:
    with open_store(cache, 0) as store:
        assert store.get(SPACES[0], [key(0)])[0] is not None
        command_line.main(["cache", "prune", str(cache), "--all"])
        (row,) = store.get(SPACES[0], [key(1)])
        assert row is None or torch.equal(row, tensor(1))
        store.put(SPACES[0], [key(0)], [tensor(0)])
        store.flush()
        assert held(cache) == ["a1"]


def test_what_is_no_cache_is_named(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "Did you mean 'cache'?" in fails(capsys, "info", cache.with_name("cahce"))
    said = fails(capsys, "prune", cache.parent, "--all")
    assert "is no cache" in said and "It contains 'cache', which is one." in said
    assert held(cache) == ["a1", "a2", "b3"]
    (cache / folder.MARKER).write_text('{"version": 99}')
    assert "is a cache of version 99: expected version 1" in fails(capsys, "verify", cache)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "expected --older-than, --max-size, --namespace or --all"),
        (["--older-than", "soon"], "'soon': expected a number with m, h, d or w"),
        (["--max-size", "10 Gigs"], "'Gigs' is no unit"),
        (["--namespace", "a"], "is the beginning of 2 namespaces: expected one of"),
        (["--namespace", "c4"], "is no namespace of this cache"),
        (["--al"], "unrecognized arguments: --al."),
        (["--older", "1w"], "unrecognized arguments: --older 1w."),
    ],
)
def test_a_wrong_prune_removes_nothing(
    cache: Path, options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in fails(capsys, "prune", cache, *options)
    assert held(cache) == ["a1", "a2", "b3"]
