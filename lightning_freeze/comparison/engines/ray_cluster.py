"""Fits on a Ray cluster: each is a task with its resources. Needs the extra ``cluster``.

Ray decides which machine runs what, and runs a task again whose machine or process was lost. Every machine needs the
same environment and finds the data and the encoder under the same paths. Logs and the cache of hidden states stay on
the machine of the fit, under the same path, unless the machines share a disk.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from lightning_freeze.comparison.engines.worker_process import FitKilled, run_in_process
from lightning_freeze.comparison.fits import FitOutcome, FitTask
from lightning_freeze.comparison.result_files import write_result
from lightning_freeze.errors import ConfigurationError

#: Resources that Ray takes as arguments; all others are custom ones.
_OWN = ("num_cpus", "num_gpus", "memory")


class RayCluster:
    """Runs fits as Ray tasks.

    Args:
        address: The address of a running cluster, as in ``ray.init``; ``None`` for the one that ``RAY_ADDRESS``
            names, or a new one on this machine.
        resources: What each fit reserves.
        retries: How often a fit runs again whose machine or process was lost.

    Raises:
        ConfigurationError: If there is no cluster at the address, or none of its machines has the resources.
    """

    def __init__(self, address: str | None, resources: Mapping[str, float], retries: int) -> None:
        self._options: dict[str, Any] = {name: amount for name, amount in resources.items() if name in _OWN}
        custom = {name: amount for name, amount in resources.items() if name not in _OWN}
        self._options |= {"resources": custom, "max_retries": retries, "retry_exceptions": [FitKilled]}
        self._is_ours = not ray.is_initialized()
        if self._is_ours:
            try:
                ray.init(address=address, log_to_driver=False, logging_level="ERROR")
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise ConfigurationError(
                    f"--address is {address!r}, and no Ray cluster answers there ({_first_line(error)}): expected an "
                    "address such as '10.0.0.1:6379', or 'auto'."
                ) from error
        self._check(resources)

    def run(self, tasks: Sequence[FitTask]) -> Iterator[FitOutcome]:
        """Run fits.

        Args:
            tasks: The fits, in the order in which they are given to Ray.

        Yields:
            How each ended, as soon as it has.
        """
        try:
            yield from self._results(tasks)
        finally:
            if self._is_ours:
                ray.shutdown()

    def _results(self, tasks: Sequence[FitTask]) -> Iterator[FitOutcome]:
        remote = ray.remote(**self._options)(_run)
        paths = [path for path in sys.path if path]
        pending = {remote.remote(task, os.getcwd(), paths): task for task in tasks}
        while pending:
            (done, *_), _ = ray.wait(list(pending))
            task = pending.pop(done)
            try:
                outcome: FitOutcome = ray.get(done)
            except RayTaskError as error:
                yield FitOutcome(task, None, _first_line(error.cause or error))
                continue
            except RayError as error:
                yield FitOutcome(task, None, f"Ray: {_first_line(error)}")
                continue
            if outcome.result is not None:
                write_result(task, outcome.result)
            yield outcome

    def _check(self, resources: Mapping[str, float]) -> None:
        """Refuse resources that no machine has: Ray would wait for them forever."""
        names = {"num_cpus": "CPU", "num_gpus": "GPU"}
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        for name, amount in resources.items():
            most = max((node.get(names.get(name, name), 0) for node in nodes), default=0)
            if amount > most:
                raise ConfigurationError(
                    f"resources.{name} is {amount:g}: expected at most {most:g}, because no machine of the cluster has "
                    "more."
                )


def _run(task: FitTask, folder: str, paths: list[str]) -> FitOutcome:
    """Run a fit on some machine of the cluster, in the folder that the comparison was started in if it is there."""
    if os.path.isdir(folder):
        os.chdir(folder)
    sys.path += [path for path in paths if path not in sys.path and os.path.isdir(path)]
    return run_in_process(task, {})


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
