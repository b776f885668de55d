"""The commands that run a Trainer: fit, validate, test and predict."""

from __future__ import annotations

import os
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only, rank_zero_warn

import lightning_freeze  # noqa: F401  (makes the callbacks and triggers known by their short names)
from lightning_freeze.cli.parsing.class_defaults import check_order, check_values, described, own_defaults
from lightning_freeze.cli.parsing.config_files import problems
from lightning_freeze.cli.parsing.given_options import check_sections, refuse_out_of_range, remember_options
from lightning_freeze.cli.parsing.parser import FreezeArgumentParser
from lightning_freeze.cli.runs.checkpoint_file import saved_hyperparameters
from lightning_freeze.cli.runs.divergence import check_finite
from lightning_freeze.cli.runs.planned_fit import plan_of_fit
from lightning_freeze.cli.runs.run_module import DEFAULT_SEED
from lightning_freeze.data import TextDataModule
from lightning_freeze.data.predictions import prediction_rows, write_predictions
from lightning_freeze.errors import ConfigurationError
from lightning_freeze.module import TransformerModule
from lightning_freeze.pages.rendering import missing_libraries
from lightning_freeze.run_report import FreezeReport

DEFAULT_EPOCHS = 3
_DESCRIPTION = (
    "Fine-tune any transformer, with the layers frozen, unfrozen and paced as the callbacks say. "
    "`lightning-freeze plan` says what a fit would do and cost, `lightning-freeze advise` measures what to freeze, "
    "`lightning-freeze compare` finds the better of several plans. "
    "`lightning-freeze layers MODEL` prints a model's layers, `lightning-freeze cache` looks after a folder of "
    "FrozenPrefixCache, `lightning-freeze merge-checkpoint` writes a whole checkpoint from one that leaves frozen "
    "weights out. `lightning-freeze fit --data.help TextDataModule` lists the options for data."
)


class SaveConfig(SaveConfigCallback):
    """Saves the config beside the logs. Commands that only evaluate leave the config of a run in its place.

    Where the logger names one folder for both, theirs is saved as ``test_config.yaml`` and the like.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save the config, as Lightning does.

        Args:
            trainer: The trainer.
            pl_module: The model.
            stage: The command.
        """
        folder = trainer.log_dir
        if stage != "fit" and folder is not None and os.path.isfile(os.path.join(folder, self.config_filename)):
            self.config_filename = f"{TrainerFn(stage).value}_{self.config_filename}"
        super().setup(trainer, pl_module, stage)


class FreezeCLI(LightningCLI):
    """LightningCLI over TransformerModule and TextDataModule, with defaults for a CSV file without a project.

    The tokenizer is the model's encoder and the data's task is the model's unless they are given; the number and names
    of the classes come from the data, or from the checkpoint where there is no training data. Logs go to a CSV file,
    the checkpoint with the lowest ``val_loss`` is kept, and training lasts 3 epochs if nothing says how long. A page
    about the run is written unless ``report`` is false; see :class:`~lightning_freeze.FreezeReport`.
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
            "seed_everything_default": DEFAULT_SEED,
            "save_config_callback": SaveConfig,
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
        parser.add_argument(
            "--report", type=bool, default=True, help="Whether `fit` writes a page about the run (FreezeReport)."
        )
        parser.set_defaults({"data": {"class_path": "lightning_freeze.data.TextDataModule"}})
        for name in ("num_classes", "labels"):
            parser.link_arguments(f"data.{name}", f"model.{name}", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, and see that the checkpoint can be read before Lightning takes the hyperparameters from it."""
        problems.clear()
        given = sys.argv[1:] if args is None else args
        if isinstance(given, list):
            check_order(given)
            check_values(given)
        with own_defaults():
            super().parse_arguments(parser, args)
        subcommand = self.config.get("subcommand")
        if subcommand:
            config = self.config[subcommand] = described(self.config[subcommand])
            check_sections(config)
            if config.get("weights_only", True) is None:
                # Lightning would take None for False where the checkpoint is at a URL, and run what is pickled in it.
                config["weights_only"] = True
            remember_options(config, self._subcommand_parsers[subcommand].get_defaults)
            refuse_out_of_range(config)
            if saved_hyperparameters(config.get("ckpt_path")):
                # Lightning parses them next.
                FreezeArgumentParser.source = f"the checkpoint {config['ckpt_path']}"

    def before_instantiate_classes(self) -> None:
        """Fill in what the data can take from the model or from the checkpoint."""
        FreezeArgumentParser.source = ""
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
        if settings.get("logger") in (None, True) and not settings.get("barebones"):
            kwargs["logger"] = CSVLogger(settings.get("default_root_dir") or ".")
        ends = settings.get("max_epochs"), settings.get("max_time")
        if self.subcommand == "fit" and ends == (None, None) and settings.get("max_steps", -1) == -1:
            kwargs["max_epochs"] = DEFAULT_EPOCHS
            rank_zero_info(f"Training for {DEFAULT_EPOCHS} epochs: neither max_epochs nor max_steps is set.")
        kwargs["callbacks"] = self._callbacks(settings)
        return super().instantiate_trainer(**kwargs)

    def before_fit(self) -> None:
        """Plan the run, so that its report can compare what happens with it."""
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        reports = [each for each in callbacks if isinstance(each, FreezeReport) and each.plan is None]
        # Other data modules may do anything when they are set up, so that happens only once.
        is_planned = isinstance(self.datamodule, TextDataModule) and self.trainer.world_size == 1
        if not reports or not is_planned or missing_libraries() or getattr(self.trainer, "fast_dev_run", False):
            return
        settings = self.config_init[self.subcommand]["trainer"]
        with suppress(Exception):  # the fit itself reports a wrong set-up
            _ = self.datamodule.tables  # read once, and what there is to say about them is no note of the plan
            reports[0].compare_with(plan_of_fit(self.trainer, settings, self.model, self.datamodule))

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
        """Name the best checkpoint and the command that tests it.

        Raises:
            DivergedError: If the loss or the weights are no longer finite.
        """
        check_finite(self.trainer)
        checkpoint = self.trainer.checkpoint_callback
        best = getattr(checkpoint, "best_model_path", "")
        if best and not getattr(self.trainer, "fast_dev_run", False):
            best = os.path.relpath(best)
            print(f"best checkpoint: {best}")
            config = Path(self.trainer.log_dir or "") / "config.yaml"
            if config.is_file() and "test" in getattr(self.datamodule, "tables", ("test",)):
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
        off = settings.get("barebones") or settings.get("enable_checkpointing") is False
        wanted = self.subcommand == "fit" and not off
        tables = getattr(self.datamodule, "tables", {})
        if wanted and "val" in tables and not any(isinstance(callback, Checkpoint) for callback in callbacks):
            callbacks.append(ModelCheckpoint(monitor="val_loss"))
        reports = self.subcommand == "fit" and not settings.get("barebones") and self._get(self.config_init, "report")
        if reports and not any(isinstance(callback, FreezeReport) for callback in callbacks):
            callbacks.append(FreezeReport())
        return callbacks
