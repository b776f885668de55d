"""The command ``lightning-freeze plan``: what a fit would do and cost, from its config."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule

from lightning_freeze.cache.store.sizes import parse_size
from lightning_freeze.cli.trainer_commands import FreezeCLI
from lightning_freeze.cli.written_phases import phases_yaml
from lightning_freeze.errors import ConfigurationError, suggest
from lightning_freeze.plan import TrainingPlan, plan_training
from lightning_freeze.plan.output.files import check_format

#: Arguments of the Trainer that affect a plan.
_COURSE = (
    "max_epochs",
    "max_steps",
    "limit_train_batches",
    "val_check_interval",
    "check_val_every_n_epoch",
    "accumulate_grad_batches",
    "precision",
)

_OPTIONS = ("output", "write", "memory")
_OPTIONS_OF_FIT = frozenset(
    {
        *("config", "print_config", "help", "seed_everything", "ckpt_path", "weights_only"),
        *("model", "data", "trainer", "optimizer", "lr_scheduler"),
    }
)

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
        with torch.device("meta"):
            super().instantiate_classes()

    def fit(self, model: LightningModule, datamodule: LightningDataModule, **kwargs: Any) -> None:
        """Plan the run.

        Args:
            model: The module.
            datamodule: The data.
            **kwargs: Further arguments of ``Trainer.fit``.
        """
        settings = self.config_init["fit"]["trainer"]
        options = {name: settings[name] for name in _COURSE if settings.get(name) is not None}
        options["max_epochs"] = self.trainer.max_epochs
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        plan = plan_training(model, callbacks, datamodule=datamodule, memory=self._memory, **options)
        devices = self.trainer.world_size
        if devices > 1:
            note = f"One device is planned; on {devices} an epoch has about {devices} times fewer batches."
            plan = replace(plan, notes=(*plan.notes, note))
        self.plan = plan

    def write_phases(self, path: Path, config: str) -> Path:
        """Write the callbacks with all phases to a file, to be used after the config.

        Args:
            path: The file.
            config: The config that was planned.
        """
        assert self.plan is not None
        entries = self.config["fit"]["trainer"].get("callbacks") or []
        callbacks = self.config_init["fit"]["trainer"].get("callbacks") or []
        text = phases_yaml(entries, callbacks, self.plan.schedules, config, str(path))
        path.write_text(text, encoding="utf-8")
        return path

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
    _check_names(rest)
    memory = None if options.memory is None else parse_size(options.memory)
    output = None if options.output is None else Path(options.output)
    if output is not None:
        check_format(output)
    cli = PlanCLI(rest, memory)
    assert cli.plan is not None
    print(cli.plan)
    if options.write is not None:
        print(f"phases: {cli.write_phases(Path(options.write), _config_of(rest))}")
    if output is not None:
        print(f"plan: {cli.plan.save(output)}")


def _check_names(args: Sequence[str]) -> None:
    """Find a misspelt option of ``plan`` itself, which the parser of ``fit`` does not know."""
    names = [arg[2:].partition("=")[0] for arg in args if arg.startswith("--")]
    for name in names:
        nearest = suggest(name, _OPTIONS) if "." not in name and name not in _OPTIONS_OF_FIT else ""
        if nearest:
            raise ConfigurationError(f"There is no option --{name}.{nearest}")


def _config_of(args: Sequence[str]) -> str:
    given = [b for a, b in pairwise(args) if a == "--config"]
    joined = [arg.removeprefix("--config=") for arg in args if arg.startswith("--config=")]
    return next(iter([*given, *joined]), "config.yaml")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("lightning-freeze plan", description=_DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--output", metavar="FILE", help="write the plan to FILE: .html, .png, .svg or .json")
    parser.add_argument("--write", metavar="FILE", help="write the phases to FILE, a config to edit and use")
    parser.add_argument("--memory", metavar="SIZE", help="mark the phases that need more, such as 24GiB")
    return parser
