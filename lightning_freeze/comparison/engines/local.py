"""Fits in processes of this machine, several at a time."""

from __future__ import annotations

import os
import queue
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

import torch

from lightning_freeze.comparison.engines.worker_process import FitKilled, WorkerProcesses, run_in_process
from lightning_freeze.comparison.fits import FitOutcome, FitTask


class LocalProcesses:
    """Runs fits side by side. CPU cores are shared equally among them, and each has one accelerator in turn.

    Args:
        workers: How many fits run at a time.
    """

    def __init__(self, workers: int = 1) -> None:
        self._workers = workers
        self._processes = WorkerProcesses()
        self._slots: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(workers):
            self._slots.put(slot)

    def run(self, tasks: Sequence[FitTask]) -> Iterator[FitOutcome]:
        """Run fits.

        Args:
            tasks: The fits, in the order in which they are started.

        Yields:
            How each ended, as soon as it has.
        """
        pool = ThreadPoolExecutor(self._workers)
        try:
            running: set[Future[FitOutcome]] = {pool.submit(self._run, task) for task in tasks}
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        finally:
            # After an interrupt, fits are still running. None may write to the directory once others may work there.
            self._processes.end()
            pool.shutdown(cancel_futures=True)

    def _run(self, task: FitTask) -> FitOutcome:
        slot = self._slots.get()
        try:
            return run_in_process(task, self._variables(slot), self._processes)
        except FitKilled as error:
            return FitOutcome(task, None, str(error))
        finally:
            self._slots.put(slot)

    def _variables(self, slot: int) -> dict[str, str]:
        if self._workers == 1:
            return {}
        threads = max(1, (os.cpu_count() or 1) // self._workers)
        variables = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(threads)}
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        devices = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
        if len(devices) > 1:
            variables["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)]
        return variables
