"""The command ``lightning-freeze``: fit, validate, test, predict, and the table of a model's layers."""

from __future__ import annotations

import argparse
import inspect
import logging
import os
import re
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any, NoReturn

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only, rank_zero_warn

import lightning_freeze  # noqa: F401  (makes the callbacks and triggers known by their short names)
from lightning_freeze.cli.checkpoint_file import saved_hyperparameters
from lightning_freeze.data import TextDataModule
from lightning_freeze.data.predictions import prediction_rows, write_predictions
from lightning_freeze.errors import ConfigurationError, suggest
from lightning_freeze.module import TransformerModule

DEBUG_VARIABLE = "LIGHTNING_FREEZE_DEBUG"
DEFAULT_EPOCHS = 3
_DESCRIPTION = (
    "Fine-tune any transformer, with the layers frozen, unfrozen and paced as the callbacks say. "
    "`lightning-freeze layers MODEL` prints a model's layers, `lightning-freeze cache` looks after a folder of "
    "FrozenPrefixCache. `lightning-freeze fit --data.help TextDataModule` lists the options for data."
)


class FreezeArgumentParser(LightningArgumentParser):
    """A parser whose errors are a few lines, with the nearest valid option."""

    def print_usage(self, file: Any = None) -> None:
        """Print one line in place of a hundred options: an error must not scroll out of sight."""
        print(f"usage: {self.prog}", file=file)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End with a message and exit code 2.

        Args:
            message: What is wrong.
            ex: The exception that told so.
        """
        super().error(message if "Did you mean" in message else message + self._nearest(message), ex)

    def _nearest(self, message: str) -> str:
        choice = re.search(r"Literal\[(.*?)\]\. Got value: (\S+)", message)
        if choice is not None:
            return "." + suggest(choice[2], re.findall(r"'([^']*)'", choice[1]))
        unknown = re.search(r"unrecognized arguments: -*([\w.]+)|(?:Option|Key) ['\"]([\w.]+)['\"] is not", message)
        if unknown is None:
            return ""
        name = next(group for group in unknown.groups() if group)
        options = {option.lstrip("-") for action in self._actions for option in action.option_strings}
        arguments = list(inspect.signature(TextDataModule.__init__).parameters)[1:]
        hint = suggest(name, sorted(options | {f"data.{name}" for name in arguments})) or suggest(name, arguments)
        return "." + hint if hint else ""


class FreezeCLI(LightningCLI):
    """LightningCLI over TransformerModule and TextDataModule, with defaults for whoever has a CSV file and no project.

    The tokenizer is the model's encoder and the data's task is the model's unless they are given; the number and names
    of the classes come from the data, or from the checkpoint where there is no training data. Logs go to a CSV file,
    the checkpoint with the lowest ``val_loss`` is kept, and training lasts 3 epochs if nothing says how long.
    Any other data module works too (``data.class_path``); for a task with classes it needs the attributes
    ``num_classes`` and ``labels`` (the names, or None).

    Args:
        model_class: The model, or a subclass of it.
        args: As for LightningCLI.
        **kwargs: As for LightningCLI.
    """

    def __init__(
        self, model_class: type[LightningModule] = TransformerModule, args: ArgsType = None, **kwargs: Any
    ) -> None:
        settings: dict[str, Any] = {
            "datamodule_class": LightningDataModule,
            "subclass_mode_data": True,
            "seed_everything_default": 42,
            "save_config_kwargs": {"overwrite": True},
            "parser_class": FreezeArgumentParser,
            "parser_kwargs": {"description": _DESCRIPTION},
            "auto_configure_optimizers": False,
        }
        super().__init__(model_class, args=args, **{**settings, **kwargs})

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Make TextDataModule the default and link the classes into the model.

        Args:
            parser: The parser of one subcommand.
        """
        parser.set_defaults({"data": {"class_path": "lightning_freeze.data.TextDataModule"}})
        for name in ("num_classes", "labels"):
            parser.link_arguments(f"data.{name}", f"model.{name}", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, and see that the checkpoint can be read before Lightning takes the hyperparameters from it."""
        super().parse_arguments(parser, args)
        subcommand = self.config.get("subcommand")
        if subcommand:
            saved_hyperparameters(self.config[subcommand].get("ckpt_path"))

    def before_instantiate_classes(self) -> None:
        """Fill in what the data can take from the model or from the checkpoint."""
        config = self.config[self.subcommand] if self.subcommand else self.config
        checkpoint = saved_hyperparameters(config.get("ckpt_path"))
        arguments = config.get("data.init_args")
        if arguments is None or "tokenizer" not in arguments:
            return
        encoder = config.get("model.encoder")
        if arguments.get("tokenizer") is None and isinstance(encoder, str):
            arguments["tokenizer"] = encoder
        task = config.get("model.task")
        if arguments.get("task") is None:
            arguments["task"] = task
        elif task is not None and arguments["task"] != task:
            raise ConfigurationError(
                f"model.task is {task!r}, but data.task is {arguments['task']!r}: expected the same task, or "
                "model.task alone."
            )
        if arguments.get("labels") is None and checkpoint.get("labels"):
            arguments["labels"] = list(checkpoint["labels"])

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer, with defaults for what the user left open.

        Args:
            **kwargs: Trainer arguments that come before the config's.
        """
        settings = {**self._get(self.config_init, "trainer", default={}), **kwargs}
        if settings.get("logger") in (None, True):
            kwargs["logger"] = CSVLogger(settings.get("default_root_dir") or ".")
        ends = settings.get("max_epochs"), settings.get("max_time")
        if self.subcommand == "fit" and ends == (None, None) and settings.get("max_steps", -1) == -1:
            kwargs["max_epochs"] = DEFAULT_EPOCHS
            rank_zero_info(f"Training for {DEFAULT_EPOCHS} epochs: neither max_epochs nor max_steps is set.")
        kwargs["callbacks"] = self._callbacks(settings)
        return super().instantiate_trainer(**kwargs)

    def before_test(self) -> None:
        """Say so when an untrained head is about to be used."""
        config = self.config_init[self.subcommand]
        task = getattr(self.model, "task", None)
        trained = getattr(self.model, "head_is_trained", False)
        if config.get("ckpt_path") is None and not trained and task is not None and not task.is_language_model:
            rank_zero_warn("No --ckpt_path is given, so the head of the model is untrained.")
        # Callbacks that only matter to training need not be there to test what they trained.
        warnings.filterwarnings("ignore", message=".*callbacks used to create the checkpoint need to be provided.*")

    before_validate = before_test
    before_predict = before_test

    def predict(self, **kwargs: Any) -> None:
        """Predict, and write the predictions beside the logs.

        Args:
            **kwargs: Arguments of ``Trainer.predict``.
        """
        outputs = self.trainer.predict(**kwargs)
        if (
            not outputs
            or getattr(self.trainer, "fast_dev_run", False)
            or not isinstance(self.datamodule, TextDataModule)
        ):
            return
        data, rank = self.datamodule, self.trainer.global_rank
        records = prediction_rows(data.tables["predict"], data.task, data.columns, outputs)
        name = "predictions" if self.trainer.world_size == 1 else f"predictions-{rank}"
        folder = Path(self.trainer.log_dir or self.trainer.default_root_dir)
        print(f"predictions: {write_predictions(folder, name, records)}")

    @rank_zero_only
    def after_fit(self) -> None:
        """Name the best checkpoint and the command that tests it."""
        checkpoint = self.trainer.checkpoint_callback
        best = getattr(checkpoint, "best_model_path", "")
        if best and not getattr(self.trainer, "fast_dev_run", False):
            best = os.path.relpath(best)
            print(f"best checkpoint: {best}")
            config = Path(self.trainer.log_dir or "") / "config.yaml"
            if config.is_file():
                print(f"test it: lightning-freeze test --config {os.path.relpath(config)} --ckpt_path {best}")

    @rank_zero_only
    def after_test(self) -> None:
        """Print the accuracy beside that of a constant guess, as the last line."""
        accuracy = self.trainer.callback_metrics.get("test_accuracy")
        if accuracy is None:
            return
        majority = getattr(self.datamodule, "majority", None)
        baseline = "" if majority is None else f" (majority class {majority:.3f})"
        print(f"test accuracy {float(accuracy):.3f}{baseline}")

    def _callbacks(self, settings: dict[str, Any]) -> list[Any]:
        given = settings.get("callbacks") or []
        callbacks = list(given) if isinstance(given, list) else [given]
        wanted = self.subcommand == "fit" and settings.get("enable_checkpointing") is not False
        tables = getattr(self.datamodule, "tables", {})
        if wanted and "val" in tables and not any(isinstance(callback, Checkpoint) for callback in callbacks):
            callbacks.append(ModelCheckpoint(monitor="val_loss"))
        return callbacks


def main(args: list[str] | None = None) -> None:
    """Run the command line. A wrong set-up ends with one message and exit code 2.

    Args:
        args: The arguments; by default those of the process.
    """
    given = sys.argv[1:] if args is None else args
    _silence_known_noise()
    try:
        if given[:1] == ["layers"]:
            _layers(given[1:])
        elif given[:1] == ["cache"]:
            from lightning_freeze.cli.cache import main as look_after_cache

            look_after_cache(given[1:])
        else:
            FreezeCLI(args=args)
    except (MisconfigurationException, ValueError) as error:
        reason = _setup_error(error)
        if os.environ.get(DEBUG_VARIABLE, "0") == "1" or reason is None:
            raise
        print(f"error: {reason}", file=sys.stderr)
        sys.exit(2)


def _layers(args: list[str]) -> None:
    """Print the layers of a model as a table."""
    parser = argparse.ArgumentParser("lightning-freeze layers", description="Print a model's layers as a table.")
    parser.add_argument("model", metavar="MODEL_NAME_OR_PATH", help="a local folder or hub name")
    name = parser.parse_args(args).model
    from rich.console import Console

    from lightning_freeze.layers import LayerStack
    from lightning_freeze.layers.table import layers_table
    from lightning_freeze.module.structure import load_structure

    Console().print(layers_table(LayerStack(load_structure(name))))


def _setup_error(error: BaseException | None) -> BaseException | None:
    """Find what our own code raised on purpose; a ``ValueError`` from anywhere else is a bug.

    The parser wraps what a class says into a message about all types that it tried: look behind it.
    """
    while error is not None:
        if isinstance(error, MisconfigurationException):
            return error
        frames = list(traceback.walk_tb(error.__traceback__))
        place = frames[-1][0].f_globals.get("__name__", "") if frames else ""
        if isinstance(error, ValueError) and place.startswith("lightning_freeze."):
            return error
        error = error.__cause__ or error.__context__
    return None


def _silence_known_noise() -> None:
    """Hide what no user of this command can act on: false alarms about small data, advertisements."""
    for message in (
        ".*does not have many workers.*",
        ".*is smaller than the logging interval.*",
        ".*LeafSpec.*is deprecated.*",
    ):
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_no_advertisement)


def _is_no_advertisement(record: logging.LogRecord) -> bool:
    return "Tip: For seamless cloud" not in record.getMessage()


if __name__ == "__main__":
    main()
