"""On which architectures the layers are right: every model type of transformers, timm, torchvision and torch's own.

    python benchmarks/layer_coverage.py [--only PATTERN] [--fresh] [--workers 2]

Each row is made in a process of its own, with a limit on time and memory. Results are kept as JSON lines, so a sweep
that was stopped goes on where it was; ``--fresh`` begins anew. At the end docs/layer_coverage.md is written.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
warnings.simplefilter("ignore")

import torch  # noqa: E402
import transformers  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent))
from sweep import catalog  # noqa: E402

TIMEOUT = 90
MEMORY = 8 << 30


Job = tuple[str, str, str]


def run(jobs: list[Job], results: Path, log: Path) -> int:
    """Make the rows of one kind in a forked process; returns its process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        transformers.logging.set_verbosity_error()
        for job in jobs:
            signal.alarm(TIMEOUT)
            start = time.perf_counter()
            row = catalog.examine(*job)
            row.pid, row.seconds = os.getpid(), round(time.perf_counter() - start, 2)
            write(results, row.data())
        code = 0
    finally:
        os._exit(code)


def write(results: Path, data: dict[str, Any]) -> None:
    """Append one line in one write, so that two processes never mix theirs."""
    handle = os.open(results, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(handle, (json.dumps(data) + "\n").encode())
    os.close(handle)


def sweep(jobs: list[Job], results: Path, workers: int) -> None:
    """Make all rows, a few kinds at a time."""
    active: dict[int, list[Job]] = {}
    log = results.with_suffix(".log")
    kinds: dict[tuple[str, str], list[Job]] = {}
    for job in jobs:
        kinds.setdefault(job[:2], []).append(job)
    left = list(reversed(kinds.values()))
    while left or active:
        while left and len(active) < workers:
            batch = left.pop()
            active[run(batch, results, log)] = batch
        pid, status = os.wait()
        batch = active.pop(pid)
        if status:
            died = os.waitstatus_to_exitcode(status)
            why = f"no answer within {TIMEOUT} s" if died == -signal.SIGALRM else f"the process ended with {died}"
            made = read(results)
            # Rows of an earlier sweep are not taken for those of this one: the first that is missing is the culprit.
            missing = [job for job in batch if job not in made or made[job].get("pid") != pid]
            if missing:
                write(results, catalog.Row(*missing[0], outcome="not run", reason=why, pid=pid).data())
                if missing[1:]:
                    left.append(missing[1:])
        if len(left) % 25 == 0:
            print(f"{len(left)} kinds left", flush=True)


def main() -> None:
    """Run the sweep, or the part of it that is left, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("/tmp/layer_coverage.jsonl"))
    parser.add_argument("--only", default="", help="regular expression that library/kind/name must contain")
    parser.add_argument("--fresh", action="store_true", help="forget the rows that there are")
    parser.add_argument("--again", default="", help="make the rows with these outcomes anew, as in 'fail,not run'")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--page", type=Path, default=Path(__file__).parents[1] / "docs" / "layer_coverage.md")
    parser.add_argument("--no-page", action="store_true", help="do not write the page")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.fresh:
        options.results.unlink(missing_ok=True)
    done = read(options.results)
    jobs = [job for job in catalog.jobs() if re.search(options.only, "/".join(job))]
    again = options.again.split(",") if options.again else []
    left = [job for job in jobs if job not in done or done[job]["outcome"] in again or "all" in again]
    print(f"{len(jobs)} rows, {len(jobs) - len(left)} known", flush=True)
    start = time.perf_counter()
    sweep(left, options.results, options.workers)
    rows = read(options.results)
    print(f"{time.perf_counter() - start:.0f} s")
    found = [rows[job] for job in jobs if job in rows]
    for outcome in ("pass", "coarser", "said", "not run", "not built", "fail"):
        print(f"{outcome:10} {sum(r['outcome'] == outcome for r in found)}")
    if not options.no_page and not options.only:
        from sweep.page import page

        options.page.write_text(page(found))


def read(results: Path) -> dict[tuple[str, str, str], dict[str, Any]]:
    """The latest row of each job."""
    rows = {}
    if results.exists():
        for line in results.read_text().splitlines():
            data = json.loads(line)
            rows[data["library"], data["kind"], data["name"]] = data
    return rows


if __name__ == "__main__":
    main()
