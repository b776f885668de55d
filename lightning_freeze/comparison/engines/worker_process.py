"""One fit, or the preparation of all, in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_freeze.comparison.fits import FitOutcome, FitTask
from lightning_freeze.comparison.result_files import read_result
from lightning_freeze.errors import ConfigurationError
from lightning_freeze.run_report.writing import write_atomically

#: The command that a worker process runs. Only it builds trainers, so that this room need not import the command line.
_COMMAND = ("-m", "lightning_freeze.cli.comparison_worker")


class FitKilled(Exception):
    """A process was ended by a signal, such as that of a machine without memory: another try may succeed."""


class WorkerProcesses:
    """The processes of fits that are running, so that an interrupted comparison ends them all."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()
        self._ended = False

    def run(self, command: Sequence[str], **options: Any) -> int:
        """Run a command, and wait for it.

        Args:
            command: The command.
            **options: As for ``subprocess.Popen``.

        Returns:
            Its exit code.

        Raises:
            FitKilled: If it was not started, because the comparison has ended.
        """
        with self._lock:  # no process is started while they are being ended
            if self._ended:
                raise FitKilled("it was not started.")
            process = subprocess.Popen(command, text=True, **options)
            self._running.add(process)
        try:
            return process.wait()
        finally:
            process.kill()  # of no effect, unless the wait was interrupted
            process.wait()
            self._running.discard(process)

    def end(self) -> None:
        """End all that are running, and start no more. What a fit has written is complete at any time."""
        with self._lock:
            self._ended = True
            for process in set(self._running):
                process.kill()


def prepare(config: Mapping[str, Any] | None, file: str | None) -> dict[str, Any]:
    """Read the settings of a comparison and the whole config of each plan.

    Args:
        config: The settings; ``None`` to read them from the file.
        file: The comparison file.

    Raises:
        ConfigurationError: If anything is wrong with them.
    """
    try:
        task = json.dumps({"config": config, "file": file}, default=os.fspath)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"compare: the settings are not plain data ({error}): expected what a YAML file holds."
        ) from None
    with tempfile.TemporaryDirectory() as folder:
        given, output = Path(folder) / "task.json", Path(folder) / "prepared.json"
        given.write_text(task, encoding="utf-8")
        done = subprocess.run(
            [*_command("prepare"), str(given), str(output), f"--parent={os.getpid()}"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=_environment({}),
        )
        if done.returncode == 2:
            raise ConfigurationError(_last_error(done.stderr))
        if done.returncode:
            # With the traceback of the process: whoever mends the code that failed needs it.
            raise RuntimeError(
                f"The comparison cannot be prepared: {_ending(done.returncode, done.stderr)}\n{done.stderr}"
            )
        prepared: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
        return prepared


def run_in_process(task: FitTask, variables: Mapping[str, str], processes: WorkerProcesses | None = None) -> FitOutcome:
    """Run a fit and wait for it. All that it prints goes to its log.

    Args:
        task: The fit.
        variables: Environment variables for it.
        processes: Those among which it is; ``None`` if it is alone.

    Raises:
        FitKilled: If its process was ended by a signal, or was not started because all were ended.
    """
    file = Path(f"{task.directory}.task.json")
    write_atomically(os.fspath(file), json.dumps(task.to_dict(), default=str))
    try:
        with task.log.open("w", encoding="utf-8") as log:
            code = (processes or WorkerProcesses()).run(
                [*_command("fit"), str(file), f"--parent={os.getpid()}"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(variables),
            )
    finally:
        file.unlink(missing_ok=True)
    if code < 0:
        raise FitKilled(_ending(code, ""))
    stored = read_result(task)
    if code == 0 and stored is not None and stored.key == task.key:
        return FitOutcome(task, stored.result)
    text = task.log.read_text(encoding="utf-8", errors="replace")
    return FitOutcome(task, None, _ending(code, text))


def _command(task: str) -> list[str]:
    return [sys.executable, *_COMMAND, task]


def _environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Where modules are found in this process, they are found in the worker too."""
    paths = os.pathsep.join(dict.fromkeys(path for path in (os.getcwd(), *sys.path) if path))
    return {**os.environ, "PYTHONPATH": paths, **variables}


def _ending(code: int, text: str) -> str:
    if code < 0:
        return f"its process was ended by {signal.Signals(-code).name}."
    return _last_error(text) or f"its process ended with exit code {code}."


def _last_error(text: str) -> str:
    lines = [line for line in text.splitlines() if line.startswith("error: ")]
    return lines[-1].removeprefix("error: ") if lines else ""
