"""Two ranks, and one process on its own, all at the same time."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def run_ranks(work: Callable[[int], Any], alone: Callable[[], Any] | None = None) -> None:
    """Run ``work(rank)`` on two ranks as torchrun starts them, and ``alone()`` in a process that knows of no rank."""
    port = free_port()

    def child(rank: int) -> None:
        names = {"LOCAL_RANK": rank, "RANK": rank, "NODE_RANK": 0, "WORLD_SIZE": 2, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in names.items()}, MASTER_ADDR="127.0.0.1")
        work(rank)

    context = multiprocessing.get_context("fork")
    children = [context.Process(target=child, args=(rank,)) for rank in (0, 1)]
    if alone is not None:
        children.append(context.Process(target=alone))
    for process in children:
        process.start()
    while running := [process for process in children if process.is_alive()]:
        multiprocessing.connection.wait([process.sentinel for process in running])
        if any(process.exitcode for process in children):  # the other rank would wait for it, for half an hour
            for process in children:
                process.join(5)
                process.kill()
    codes = [process.exitcode for process in children]
    if any(codes):
        sys.exit(f"exit codes of the ranks (and of the process on its own): {codes}")


def run_script(script: str, *arguments: str | Path) -> str:
    """Run one of the scripts beside this file, in an environment that knows of no rank; returns what it prints."""
    path = Path(__file__).with_name(script)
    environment = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "RANK", "NODE_RANK", "WORLD_SIZE")}
    environment.update(OMP_NUM_THREADS="1", MASTER_ADDR="127.0.0.1", PYTHONWARNINGS="ignore", CUDA_VISIBLE_DEVICES="")
    command = [sys.executable, str(path), *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, env=environment, text=True, start_new_session=True, **pipes) as process:
        try:
            output, _ = process.communicate(timeout=180)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # its ranks too
            raise
    assert process.returncode == 0, output[-12000:]
    return output


def load(out: Path, name: str, who: int | str) -> dict[str, Any]:
    return torch.load(out / f"{name}-{who}.pt", weights_only=True)


def largest_difference(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).abs().max()) for name in left)


def are_identical(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    assert left.keys() == right.keys()
    return all(torch.equal(left[name], right[name]) for name in left)


def assert_resumed_runs_are_straight(out: Path, checkpoints: Sequence[str]) -> None:
    """All runs of ``resume_script.py`` end with the same weights, bit for bit, on all ranks."""
    straight = load(out, "straight", 0)
    for name in ("straight", *checkpoints):
        ranks = [load(out, name.replace("/", " "), rank) for rank in (0, 1)]
        for rank in ranks:
            assert are_identical(rank["weights"], straight["weights"]), name
            assert rank["trained"] == straight["trained"][-len(rank["trained"]) :], name
