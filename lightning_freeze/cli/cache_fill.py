"""The command ``lightning-freeze cache fill``: what a fit would compute in its frozen layers, computed ahead."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher  # nothing public tells

from lightning_freeze.callbacks.cache_filling import CacheFillingCallback, FillComplete, check_cache
from lightning_freeze.cli.trainer_commands import FreezeCLI
from lightning_freeze.errors import ConfigurationError
from lightning_freeze.run_report import FreezeReport


class FillCLI(FreezeCLI):
    """Takes the options of ``fit``, and fills the cache instead of fitting.

    Args:
        args: The options.
    """

    def __init__(self, args: Sequence[str]) -> None:
        with warnings.catch_warnings():
            # Lightning asks for the arguments of the process, which are those of `cache fill`.
            warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
            super().__init__(args=["fit", *args], save_config_callback=None)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer without anything that writes files.

        Args:
            **kwargs: Trainer arguments that come before the config's.
        """
        quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
        return super().instantiate_trainer(**kwargs, **quiet, logger=DummyLogger(), num_sanity_val_steps=0)

    def fit(self, model: LightningModule, **kwargs: Any) -> None:
        """Fill the cache.

        Args:
            model: The module.
            **kwargs: Further arguments of ``Trainer.fit``.
        """
        check_cache(self.trainer)
        if isinstance(self.trainer.strategy.launcher, _MultiProcessingLauncher):
            raise ConfigurationError(
                f"The cache cannot be filled under {type(self.trainer.strategy).__name__} with processes that are "
                "spawned or forked: expected `--trainer.strategy ddp`, which starts the command again in each of them."
            )
        try:
            self.trainer.fit(model, **kwargs)
        except FillComplete:
            pass
        else:
            raise ConfigurationError("The run has no training batch, so there is nothing to fill.")
        filling = next(c for c in self.trainer.callbacks if isinstance(c, CacheFillingCallback))  # type: ignore[attr-defined]
        if self.trainer.is_global_zero:
            print(filling.filled)

    def after_fit(self) -> None:
        """Nothing was trained."""

    def _callbacks(self, settings: dict[str, Any]) -> list[Any]:
        kept = [c for c in super()._callbacks(settings) if not isinstance(c, (Checkpoint, FreezeReport, ProgressBar))]
        for callback in kept:
            if hasattr(callback, "verbose"):
                callback.verbose = False
        return [*kept, CacheFillingCallback(_show_progress)]


def _show_progress(done: int, expected: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{done:,} of about {expected:,} samples", end="", file=sys.stderr, flush=True)


def main(args: Sequence[str]) -> None:
    """Run the command.

    Args:
        args: The options of ``lightning-freeze fit``.

    Raises:
        ConfigurationError: If the set-up is wrong, as in ``fit``, there is no ``FrozenPrefixCache`` with a
            ``cache_dir``, nothing can be cached, or the disk has no room.
    """
    FillCLI(args)
