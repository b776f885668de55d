"""Which embedded store suits the disk tier of the frozen prefix cache, and how fast our own tiers are.

    python benchmarks/cache_store.py [--quick] [--save]

The candidates store the same entries (checksum, header, tensor) in turn, in several rounds; the figures are medians.
Writes are those of a fill (batches, a commit every 32 MiB, flushed to the disk unless it says otherwise); reads are
random batches of 32 from the operating system's page cache, each copied into a tensor and checked against its checksum.
``segments`` is the simplest thing that could work, an append-only file with an index in RAM: the floor for the others.
"""

import argparse
import math
import mmap
import multiprocessing
import os
import random
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import lmdb
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.saved_results import Cell, Figure, Provenance, Table, add_option, save
from lightning_freeze.cache.store.entry import entry_bytes, is_sound, read_entry, seal, write_entry
from lightning_freeze.cache.store.index import KeyIndex, as_array
from lightning_freeze.cache.store.store import open_store

SPACE = b"n" * 16
BATCH = 32
COMMIT_BYTES = 32 * 1024**2


class Lmdb:
    """LMDB as the disk tier uses it: data reaches the disk before the page that refers to it."""

    options: ClassVar[dict[str, Any]] = {"metasync": False}

    def __init__(self, root: Path) -> None:
        self.env = lmdb.open(str(root), map_size=2**36, **self.options)

    def write(self, rows: Sequence[tuple[bytes, Any]]) -> None:
        with self.env.begin(write=True) as transaction:
            for key, data in rows:
                transaction.put(key, data, overwrite=False)

    def read(self, keys: Sequence[bytes], use: Callable[[bytes, Any], Any]) -> list[Any]:
        with self.env.begin(buffers=True) as transaction:
            return [use(key, transaction.get(key)) for key in keys]

    def index_bytes(self) -> float:
        """Pages of the tree, which lie in the page cache and are shared by all processes."""
        stat = self.env.stat()
        return float((stat["leaf_pages"] + stat["branch_pages"]) * stat["psize"] / stat["entries"])

    def close(self) -> None:
        self.env.close()


class LmdbNoSync(Lmdb):
    """LMDB without waiting for the disk: a power cut may corrupt the structure."""

    options: ClassVar[dict[str, Any]] = {"sync": False}


class Sqlite:
    """SQLite with a write-ahead log, large pages and a memory map."""

    def __init__(self, root: Path) -> None:
        self.db = sqlite3.connect(root / "cache.sqlite", isolation_level=None)
        for pragma in ("page_size=65536", "journal_mode=WAL", "synchronous=NORMAL", f"mmap_size={2**36}"):
            self.db.execute(f"PRAGMA {pragma}")
        self.db.execute("CREATE TABLE IF NOT EXISTS entries (key BLOB PRIMARY KEY, data BLOB) WITHOUT ROWID")

    def write(self, rows: Sequence[tuple[bytes, Any]]) -> None:
        self.db.execute("BEGIN IMMEDIATE")
        self.db.executemany("INSERT OR IGNORE INTO entries VALUES (?, ?)", rows)
        self.db.execute("COMMIT")

    def read(self, keys: Sequence[bytes], use: Callable[[bytes, Any], Any]) -> list[Any]:
        ask = "SELECT data FROM entries WHERE key = ?"
        return [use(key, self.db.execute(ask, (key,)).fetchone()[0]) for key in keys]

    def index_bytes(self) -> float:
        return float("nan")

    def close(self) -> None:
        self.db.close()


class Segments:
    """One append-only file and an index in the memory of each process. No safety for several writers."""

    def __init__(self, root: Path) -> None:
        self.file = (root / "segment").open("a+b")
        self.places = (root / "places").open("a+b")
        self.places.seek(0)
        rows = np.frombuffer(self.places.read(), dtype=np.uint64).reshape(-1, 4)
        self.index, self.lengths, self.map = KeyIndex(), rows[:, 3].tolist(), None
        self.starts = rows[:, 2].tolist()
        if len(rows):
            self.index.insert(rows[:, :2], np.arange(len(rows)))

    def write(self, rows: Sequence[tuple[bytes, Any]]) -> None:
        for key, data in rows:
            self.index.insert(as_array([key]), np.array([len(self.starts)]))
            self.starts.append(self.file.tell())
            self.lengths.append(len(data))
            self.file.write(data)
            self.places.write(key + np.array([self.starts[-1], len(data)], dtype=np.uint64).tobytes())
        for file in (self.file, self.places):
            file.flush()
            os.fdatasync(file.fileno())
        self.map = None

    def read(self, keys: Sequence[bytes], use: Callable[[bytes, Any], Any]) -> list[Any]:
        self.map = self.map or memoryview(mmap.mmap(self.file.fileno(), 0, prot=mmap.PROT_READ))
        rows = self.index.find(as_array(keys)).tolist()
        return [
            use(k, self.map[self.starts[n] : self.starts[n] + self.lengths[n]]) for k, n in zip(keys, rows, strict=True)
        ]

    def index_bytes(self) -> float:
        return self.index.nbytes / len(self.index) + 16

    def close(self) -> None:
        self.map = None
        self.file.close()
        self.places.close()


CANDIDATES: dict[str, Any] = {
    "LMDB": Lmdb, "LMDB, not synced": LmdbNoSync, "SQLite (WAL)": Sqlite, "segments": Segments,
}  # fmt: skip


def sealed(keys: Sequence[bytes], tensor: torch.Tensor) -> Iterator[tuple[bytes, Any]]:
    """The entries as they go to disk."""
    for number, key in enumerate(keys):
        data = torch.empty(entry_bytes(tensor), dtype=torch.uint8)
        write_entry(tensor + number, data)
        seal(SPACE + key, data.numpy())
        yield key, memoryview(data.numpy())


def copied(key: bytes, data: Any) -> torch.Tensor:
    """What a read costs in full: the copy and its check."""
    entry = torch.empty(len(data), dtype=torch.uint8)
    np.copyto(entry.numpy(), np.frombuffer(data, dtype=np.uint8))
    if not is_sound(SPACE + key, entry.numpy()):
        raise RuntimeError("a damaged entry")
    return read_entry(entry)


def fill(store: Any, rows: Sequence[tuple[bytes, Any]]) -> float:
    """Seconds to write all rows."""
    step = max(1, COMMIT_BYTES // len(rows[0][1]))
    began = time.perf_counter()
    for start in range(0, len(rows), step):
        store.write(rows[start : start + step])
    return time.perf_counter() - began


def read_all(store: Any, keys: Sequence[bytes]) -> float:
    """Seconds to read all keys in random batches."""
    order = random.Random(0).sample(list(keys), len(keys))
    began = time.perf_counter()
    for start in range(0, len(order), BATCH):
        store.read(order[start : start + BATCH], copied)
    return time.perf_counter() - began


def reader(kind: Any, root: Path, keys: Sequence[bytes], until: Any, result: Any) -> None:
    """Another process that reads what is there until it is told to stop."""
    store, count, began = kind(root), 0, time.perf_counter()
    while not until.is_set():
        store.read(random.sample(list(keys), BATCH), copied)
        count += BATCH
    result.put(count / (time.perf_counter() - began))


def together(kind: Any, root: Path, old: Sequence[bytes], new: Sequence[tuple[bytes, Any]]) -> tuple[float, float]:
    """Entries a second of a writer, and of two readers in other processes, at the same time."""
    context = multiprocessing.get_context("fork")
    until, result = context.Event(), context.Queue()
    readers = [context.Process(target=reader, args=(kind, root, old, until, result)) for _ in range(2)]
    for process in readers:
        process.start()
    store = kind(root)
    seconds = fill(store, new)
    until.set()
    rates = [result.get(timeout=60) for _ in readers]
    for process in readers:
        process.join()
    store.close()
    return len(new) / seconds, sum(rates)


def measure(kind: Any, folder: Path, tensor: torch.Tensor, count: int) -> dict[str, float]:
    """All figures of one candidate, in a fresh folder."""
    root = Path(tempfile.mkdtemp(dir=folder))
    keys = [os.urandom(16) for _ in range(count)]
    rows = list(sealed(keys, tensor))
    store = kind(root)
    figures = {"write": count / fill(store, rows)}
    read_all(store, keys)
    figures["read"] = count / read_all(store, keys)
    figures["index"] = store.index_bytes()
    store.close()
    size = sum(path.stat().st_blocks * 512 for path in root.rglob("*") if path.name != "lock.mdb")
    figures["overhead"] = 100 * (size / (count * tensor.numel() * tensor.element_size()) - 1)
    began = time.perf_counter()
    kind(root).close()
    figures["open"] = 1e3 * (time.perf_counter() - began)
    more = list(sealed([os.urandom(16) for _ in range(count // 2)], tensor))
    figures["write beside readers"], figures["read beside writer"] = together(kind, root, keys, more)
    shutil.rmtree(root)
    return figures


def tiers(folder: Path, tensor: torch.Tensor, count: int) -> dict[str, float]:
    """Our own store: entries a second of put, and of get from RAM and from disk."""
    root = Path(tempfile.mkdtemp(dir=folder))
    keys = [os.urandom(16) for _ in range(count)]
    rows = [tensor + n for n in range(BATCH)]
    figures = {}
    with open_store(root, 2 * count * entry_bytes(tensor)) as store:
        for name in ("put", "get from RAM"):
            began = time.perf_counter()
            for start in range(0, count, BATCH):
                batch = keys[start : start + BATCH]
                store.put(SPACE, batch, rows[: len(batch)]) if name == "put" else store.get(SPACE, batch)
            figures[name] = count / (time.perf_counter() - began)
            store.flush()
    with open_store(root, 0) as store:
        store.get(SPACE, keys)
        began = time.perf_counter()
        for start in range(0, count, BATCH):
            store.get(SPACE, keys[start : start + BATCH])
        figures["get from disk"] = count / (time.perf_counter() - began)
    shutil.rmtree(root)
    return figures


def policies(samples: int = 4000, epochs: int = 6) -> Table:
    """Hit rates of the last epoch under replacement policies, by the share of the samples that there is room for."""
    rows: dict[str, dict[str, Cell]] = {}
    for order in ("sequential", "shuffled"):
        for policy in ("keep what is there", "LRU", "random"):
            rows[f"{order}, {policy}"] = {
                f"room for {share:.0%}": f"{hit_rate(policy, order, samples, int(samples * share), epochs):.1%}"
                for share in (0.25, 0.5, 0.9)
            }
    return Table("Hit rate by replacement policy", rows, f"Epoch {epochs} of {samples} samples, simulated.")


def hit_rate(policy: str, order: str, samples: int, room: int, epochs: int) -> float:
    """Simulate the look-ups of training under a policy."""
    rng, held, slots, hits = random.Random(0), dict[int, None](), list[int](), 0
    for epoch in range(epochs):
        numbers = list(range(samples))
        if order == "shuffled":
            rng.shuffle(numbers)
        for n in numbers:
            if n in held:
                hits += epoch == epochs - 1
                if policy == "LRU":
                    held[n] = held.pop(n)
                continue
            if len(held) < room:
                slots.append(n)
            elif policy == "keep what is there":
                continue
            elif policy == "LRU":
                del held[next(iter(held))]
            else:
                at = rng.randrange(room)
                del held[slots[at]]
                slots[at] = n
            held[n] = None
    return hits / samples


#: Figure of :func:`measure` to its column, and the decimals to print.
COLUMNS = {
    "write": ("write", 0),
    "read": ("read", 0),
    "write beside readers": ("write*", 0),
    "read beside writer": ("read*", 0),
    "open": ("open, ms", 1),
    "index": ("index, B", 0),
    "overhead": ("overhead, %", 1),
}


def stores(title: str, tensor: torch.Tensor, count: int, rounds: int, folder: Path) -> Table:
    """Every candidate and our own store with one size of entry."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in CANDIDATES}
    ours = []
    for _ in range(rounds):
        for name, kind in CANDIDATES.items():
            found[name].append(measure(kind, folder, tensor, count))
        ours.append(tiers(folder, tensor, count))
    rows = {
        name: {column: _cell([run[key] for run in runs], digits) for key, (column, digits) in COLUMNS.items()}
        for name, runs in found.items()
    }
    whole = ", ".join(f"{key} {Figure([row[key] for row in ours], 0)}" for key in ours[0])
    notes = [
        f"the store as a whole: {whole}",
        "* one writer and two readers in three processes, at the same time",
    ]
    return Table(title, rows, f"Entries per second. Entries: {count}, rounds: {rounds}.", notes)


def _cell(values: list[float], digits: int) -> Cell:
    return "" if any(map(math.isnan, values)) else Figure(values, digits)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Stores for the frozen prefix cache.")
    parser.add_argument("--quick", action="store_true", help="few entries, one round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to measure")
    add_option(parser)
    arguments = parser.parse_args()
    made = Provenance.now("lmdb", "xxhash")
    rounds, scale = (1, 0.1) if arguments.quick else (arguments.rounds, 1.0)
    shapes = {
        "128 x 768 float32, 393 kB": (torch.randn(128, 768), int(1000 * scale)),
        "64 x 384 bfloat16, 49 kB": (torch.randn(64, 384).bfloat16(), int(6000 * scale)),
    }
    tables = []
    for title, (tensor, count) in shapes.items():
        tables.append(stores(title, tensor, count, rounds, arguments.folder))
        print(tables[-1].markdown(), flush=True)
    tables.append(policies())
    print(tables[-1].markdown())
    if arguments.save:
        name = "cache_store-quick" if arguments.quick else "cache_store"
        save(name, "Stores for the frozen prefix cache", tables, made, arguments.save)


if __name__ == "__main__":
    main()
