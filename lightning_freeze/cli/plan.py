"""The command ``lightning-freeze plan``: what a fit would do and cost, from its config."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from lightning_freeze.cache.store.sizes import parse_size
from lightning_freeze.cli.parsing.own_options import CommandParser, check_names
from lightning_freeze.cli.runs.planned_fit import is_missing, plan_of_fit
from lightning_freeze.cli.runs.written_phases import phases_yaml
from lightning_freeze.cli.trainer_commands import FreezeCLI
from lightning_freeze.errors import ConfigurationError
from lightning_freeze.plan import TrainingPlan
from lightning_freeze.plan.output.files import check_format

_OPTIONS = ("output", "write", "memory")

_DESCRIPTION = (
    "Say what `lightning-freeze fit` would do and cost, without training: when which layer trains, at which rate, what "
    "a training step keeps in memory and how long it takes, relative to full fine-tuning. Takes all options of "
    "`lightning-freeze fit` too."
)


class PlanCLI(FreezeCLI):
    """Takes the options of ``fit``, and plans instead of fitting.

    Args:
        args: The options.
        memory: Available memory in bytes, to find out what fits.
    """

    def __init__(self, args: Sequence[str], memory: int | None) -> None:
        self.plan: TrainingPlan | None = None
        self._memory = memory
        with warnings.catch_warnings():
            # Lightning asks for the arguments of the process, which are those of `plan`.
            warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
            super().__init__(args=["fit", *args], save_config_callback=None)

    def instantiate_classes(self) -> None:
        """Build the model without weights and without memory for them, because a plan does not need them."""
        model = self.config["fit"].get("model", {})
        if "pretrained" in model:
            model["pretrained"] = False
        # Not the data: it may compute with tensors when it is built. Lightning's own instantiator, which comes after
        # this one, only keeps hyperparameters for a checkpoint.
        self.parser.add_instantiator(_built_without_memory, LightningModule, prepend=True)
        super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer. That of a run on an accelerator which this machine lacks is built for the CPU.

        Args:
            **kwargs: Trainer arguments that come before the config's.
        """
        settings = self.config_init["fit"]["trainer"]
        if is_missing(settings.get("accelerator")):
            devices = settings.get("devices")
            count = len(devices) if isinstance(devices, list) else int(devices) if str(devices).isdigit() else 1
            kwargs.update(accelerator="cpu", devices=max(1, count), strategy="auto", precision=None)
        return super().instantiate_trainer(**kwargs)

    def fit(self, model: LightningModule, datamodule: LightningDataModule, **kwargs: Any) -> None:
        """Plan the run.

        Args:
            model: The module.
            datamodule: The data.
            **kwargs: Further arguments of ``Trainer.fit``.
        """
        plan = plan_of_fit(self.trainer, self.config_init["fit"]["trainer"], model, datamodule, self._memory)
        if kwargs.get("ckpt_path") is not None:
            note = "The whole run is planned from its beginning, not what is left of it after the checkpoint."
            plan = replace(plan, notes=(*plan.notes, note))
        devices = self.trainer.world_size
        if devices > 1:
            note = f"One device is planned; on {devices} an epoch has about {devices} times fewer batches."
            plan = replace(plan, notes=(*plan.notes, note))
        self.plan = plan

    def write_phases(self, path: Path, configs: Sequence[str]) -> Path:
        """Write the callbacks with all phases to a file, to be used after the config.

        Args:
            path: The file.
            configs: The configs that were planned.
        """
        assert self.plan is not None
        entries = self.config["fit"]["trainer"].get("callbacks") or []
        callbacks = self.config_init["fit"]["trainer"].get("callbacks") or []
        text = phases_yaml(entries, callbacks, self.plan.schedules, configs, str(path))
        path.write_text(text, encoding="utf-8")
        return path

    def before_fit(self) -> None:
        """No report is written, so it needs no plan."""

    def after_fit(self) -> None:
        """Nothing was trained."""


def main(args: Sequence[str]) -> None:
    """Run the command.

    Args:
        args: ``[--output FILE] [--memory SIZE]`` and the options of ``fit``.

    Raises:
        ConfigurationError: If the set-up is wrong, as in ``fit``, or a file cannot be of the kind that is asked for.
    """
    options, rest = _parser().parse_known_args(args)
    check_names(rest, _OPTIONS)
    memory = parse_size(options.memory, "--memory")
    output = None if options.output is None else Path(options.output)
    if output is not None:
        check_format(output)
    configs = _configs_of(rest)
    write = None if options.write is None else _writable(Path(options.write), rest)
    cli = PlanCLI(rest, memory)
    assert cli.plan is not None
    print(cli.plan)
    if write is not None:
        print(f"phases: {cli.write_phases(write, configs)}")
    if output is not None:
        print(f"plan: {cli.plan.save(output)}")


def _configs_of(args: Sequence[str]) -> list[str]:
    """The config files that are given, in their order."""
    parser = CommandParser("lightning-freeze plan", add_help=False, allow_abbrev=False)
    parser.add_argument("-c", "--config", action="append", default=[])
    found: list[str] = parser.parse_known_args(args)[0].config
    return found


def _writable(path: Path, args: Sequence[str]) -> Path:
    """Refuse a file that the options name, since the phases are to be used after it, or that cannot be written.

    Raises:
        ConfigurationError: Naming the file.
    """
    if path.is_dir() or not path.parent.is_dir():
        what = "a file, and this is a folder" if path.is_dir() else f"a folder that exists, and {path.parent} does not"
        raise ConfigurationError(f"--write {path}: expected {what}.")
    # Not only configs: --trainer and other sections take a file too.
    named = {*_configs_of(args), *args, *(arg.partition("=")[2] for arg in args)} - {""}
    if any(path.resolve() == Path(value).resolve() for value in named):
        raise ConfigurationError(
            f"--write {path} would replace the config that is planned: expected another file, to be used after it."
        )
    if path.suffix.lower() not in (".yaml", ".yml"):
        raise ConfigurationError(f"--write {path}: expected a file that ends with '.yaml', to be used as a config.")
    return path


def _built_without_memory(class_type: type[LightningModule], *args: Any, **kwargs: Any) -> LightningModule:
    kwargs.pop("applied_instantiation_links", None)
    with torch.device("meta"):
        return class_type(*args, **kwargs)


def _parser() -> CommandParser:
    parser = CommandParser("lightning-freeze plan", description=_DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--output", metavar="FILE", help="write the plan to FILE: .html, .png, .svg or .json")
    parser.add_argument("--write", metavar="FILE", help="write the phases to FILE, a config to edit and use")
    parser.add_argument("--memory", metavar="SIZE", help="mark the phases that need more, such as 24GiB")
    return parser
