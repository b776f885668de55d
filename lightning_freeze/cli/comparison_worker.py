"""``python -m lightning_freeze.cli.comparison_worker``: the processes that a comparison starts.

``prepare`` reads a comparison file and works out the whole config of each plan. ``fit`` runs one fit. A fit has a
process of its own, so that a crash of one is not that of all, and its peak of memory is its own.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback

from lightning_freeze.cli.command_line import silence_known_noise
from lightning_freeze.cli.measured_fit import ForgettingMetric, is_first_process, run_fit
from lightning_freeze.cli.parsing.config_files import load_yaml
from lightning_freeze.cli.parsing.known_classes import find_class
from lightning_freeze.cli.parsing.user_errors import message_for
from lightning_freeze.cli.runs.divergence import DivergedError
from lightning_freeze.cli.trainer_commands import FreezeCLI
from lightning_freeze.comparison.fits import FitTask
from lightning_freeze.comparison.result_files import write_result
from lightning_freeze.comparison.settings import PartialConfig, read_settings
from lightning_freeze.errors import ConfigurationError, suggest
from lightning_freeze.run_report.writing import write_atomically

_POLL_SECONDS = 0.5


def main(args: Sequence[str] | None = None) -> None:
    """Run a task, or end with a message and exit code 2 for a wrong set-up, 1 for a run that has diverged.

    Args:
        args: ``prepare FILE OUTPUT`` or ``fit FILE``, where FILE holds the task as JSON, and ``--parent PID``.
    """
    parser = argparse.ArgumentParser("comparison_worker")
    parser.add_argument("command", choices=("prepare", "fit"))
    parser.add_argument("task", type=Path)
    parser.add_argument("output", nargs="?")
    parser.add_argument("--parent", type=int)
    options = parser.parse_args(args)
    if options.parent is not None:
        # The strategy has started this process if there are several for one fit.
        parent = os.getppid() if "LOCAL_RANK" in os.environ else options.parent
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    silence_known_noise()
    task = json.loads(options.task.read_text(encoding="utf-8"))
    try:
        if options.command == "prepare":
            prepared = prepare(task["config"], task["file"])
            write_atomically(options.output, json.dumps(prepared, default=str))
        else:
            fit(FitTask(**task))
    except DivergedError as error:
        _end(str(error), 1)
    except Exception as error:
        message = message_for(error)
        if message is None:
            traceback.print_exc()
            _end(f"{type(error).__name__}: {error}", 3)
        _end(message or "", 2)


def prepare(content: Mapping[str, Any] | None, file: str | None) -> dict[str, Any]:
    """Read the settings of a comparison and the whole config of each plan.

    Args:
        content: The settings; ``None`` to read them from the file.
        file: The comparison file.

    Returns:
        The settings, and the configs by the name of the plan, for JSON.

    Raises:
        ConfigurationError: If anything is wrong with them. The message names the plan.
    """
    settings = read_settings(_read(file) if content is None and file is not None else content, file)
    configs = {name: whole_config(name, settings.base, plan) for name, plan in settings.plans.items()}
    if settings.forgetting is not None:
        forgetting_metric(settings.forgetting)
    return {"settings": vars(settings), "configs": configs}


def fit(task: FitTask) -> None:
    """Run a fit, and write its file.

    Args:
        task: The fit.
    """
    forgetting = None if task.forgetting is None else forgetting_metric(task.forgetting)
    result = run_fit(
        task.config, task.seed, task.directory, forgetting=forgetting, keep_checkpoint=task.keep_checkpoint
    )
    if is_first_process():
        write_result(task, result)


def whole_config(name: str, base: PartialConfig | None, plan: PartialConfig) -> dict[str, Any]:
    """The config of a fit with all defaults, as ``lightning-freeze fit --config base --config plan`` would have it.

    Everything that it names is built once, without weights, to see that it can be.

    Args:
        name: The name of the plan.
        base: The base config.
        plan: What the plan adds.

    Raises:
        ConfigurationError: If it is wrong. The message names the plan.
    """
    stderr = io.StringIO()
    with tempfile.TemporaryDirectory() as folder:
        files = [
            _config_file(part, Path(folder) / label)
            for part, label in ((base, "base.yaml"), (plan, "plan.yaml"))
            if part not in (None, {})
        ]
        try:
            with contextlib.redirect_stderr(stderr), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                _ConfigReader([f"--config={file}" for file in files])
        except _Read as read:
            return read.config
        except SystemExit:
            lines = [line for line in stderr.getvalue().splitlines() if line.startswith("error: ")]
            message = lines[-1].removeprefix("error: ") if lines else "the config cannot be read."
            raise ConfigurationError(f"plan {name!r}: {_without_folder(message, folder)}") from None
        except Exception as error:
            known = message_for(error)
            if known is None:
                raise
            raise ConfigurationError(f"plan {name!r}: {known}") from error
    raise AssertionError("the config was not read")


def forgetting_metric(given: Mapping[str, Any] | str) -> ForgettingMetric:
    """The metric of forgetting that a setting names.

    Args:
        given: An import path, or ``class_path`` and ``init_args``.

    Raises:
        ConfigurationError: If there is none.
    """
    name = given if isinstance(given, str) else str(given["class_path"])
    found: Any = find_class(name) or _function(name)
    arguments = {} if isinstance(given, str) else (given.get("init_args") or {})
    if isinstance(found, type) and issubclass(found, Callback):
        raise ConfigurationError(
            f"forgetting is {name!r}, which is a callback: expected it in trainer.callbacks of the base config, where "
            "it is measured without this setting, or a metric that takes the module and the data."
        )
    if isinstance(found, type):
        try:
            found = found(**arguments)
        except TypeError as error:
            raise ConfigurationError(f"forgetting: {name}: {error}.") from None
    if not callable(found):
        raise ConfigurationError(
            f"forgetting is {name!r}, which cannot be called: expected a metric that takes the module and the data."
        )
    metric: ForgettingMetric = found
    return metric


class _Read(Exception):
    """Raised to end a command line when its config is read."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = config


class _ConfigReader(FreezeCLI):
    """``fit`` up to the first step: its config is read, and everything in it is built without weights."""

    def __init__(self, args: list[str]) -> None:
        super().__init__(args=["fit", *args], save_config_callback=None)

    def instantiate_classes(self) -> None:
        """Keep the config, then see that it can be built.

        Raises:
            _Read: Always.
        """
        config: dict[str, Any] = load_yaml(self._subcommand_parsers["fit"].dump(self.config["fit"], skip_unset=False))
        if "pretrained" in self.config["fit"].get("model", {}):
            self.config["fit"]["model"]["pretrained"] = False
        with torch.device("meta"):
            super().instantiate_classes()
        raise _Read(config)


def _read(file: str) -> Any:
    path = Path(file)
    try:
        return load_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        found = sorted(each.name for each in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        raise ConfigurationError(
            f"--config {file!r} does not exist: expected a comparison file.{suggest(path.name, found)}"
        ) from None
    except OSError as error:
        raise ConfigurationError(f"--config {file!r} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"--config {file!r} cannot be read as text: {error.reason}.") from None
    except yaml.YAMLError as error:
        raise ConfigurationError(f"--config {file!r} is no YAML: {' '.join(str(error).split())}.") from None


def _config_file(part: PartialConfig | None, target: Path) -> str:
    if isinstance(part, str):
        return part
    target.write_text(yaml.safe_dump(part, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return str(target)


def _without_folder(message: str, folder: str) -> str:
    """A message about a config that stands in the comparison file itself."""
    for label in ("base", "plan"):
        message = message.replace(f"--config {folder}{os.sep}{label}.yaml: ", "" if label == "plan" else "base: ")
    return message


def _function(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(__import__(module, fromlist=[attribute]), attribute)
    except (ImportError, ValueError) as error:
        raise ConfigurationError(f"forgetting is {name!r}, and {module!r} cannot be imported: {error}.") from None
    except AttributeError:
        names = [each for each in dir(sys.modules[module]) if not each.startswith("_")]
        raise ConfigurationError(
            f"forgetting is {name!r}, and {module!r} has no {attribute!r}.{suggest(attribute, names)}"
        ) from None


def _end_with(parent: int) -> None:
    """End this process when the one that started it is gone, so that nothing is left running after a kill."""
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS)
    os._exit(1)


def _end(message: str, code: int) -> None:
    print(f"error: {message}", file=sys.stderr, flush=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
