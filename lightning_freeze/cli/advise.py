"""The command ``lightning-freeze advise``: measures what to freeze, from the config of a fit."""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule

from lightning_freeze.advice import Advice, advise
from lightning_freeze.advice.output.config_text import config_text, entries
from lightning_freeze.advice.result import CONFIG
from lightning_freeze.callbacks import FrozenPrefixCache
from lightning_freeze.callbacks.layer_callback import LayerCallback
from lightning_freeze.cli.parsing.config_files import load_yaml
from lightning_freeze.cli.parsing.own_options import CommandParser, check_names
from lightning_freeze.cli.trainer_commands import FreezeCLI

_OPTIONS = ("output", "monitor", "mode", "budget", "seeds", "examples", "tolerance")
_DESCRIPTION = (
    "Measure which layers to freeze, and recommend a config. One pass over a sample of the training data shows what "
    "each layer knows; a short race of plans finds the best one, which trains at full length beside full fine-tuning. "
    "Takes all options of `lightning-freeze fit` too."
)


class AdviseCLI(FreezeCLI):
    """Takes the options of ``fit``, and races plans instead of fitting.

    Args:
        args: The options.
        folder: Where the advice, the scores of all fits and the cached hidden states are kept.
        **options: Arguments of :func:`~lightning_freeze.advise`.
    """

    def __init__(self, args: Sequence[str], folder: str, **options: Any) -> None:
        self.advice: Advice | None = None
        self._folder = folder
        self._options = options
        with warnings.catch_warnings():
            # Lightning asks for the arguments of the process, which are those of `advise`.
            warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
            super().__init__(args=["fit", *args], save_config_callback=None)

    def before_fit(self) -> None:
        """Nothing is fitted as the config says, so there is no run to plan or to report."""

    def fit(self, model: LightningModule, datamodule: LightningDataModule, **kwargs: Any) -> None:
        """Find out what to freeze.

        Args:
            model: The module.
            datamodule: The data.
            **kwargs: Further arguments of ``Trainer.fit``.
        """
        settings = self.config_init["fit"]["trainer"]
        options = {name: value for name, value in settings.items() if value is not None and name != "callbacks"}
        options["max_epochs"] = self.trainer.max_epochs
        advice = advise(
            self._new_module,
            datamodule,
            callbacks=self._given_callbacks(),
            folder=self._folder,
            **{**options, **self._options},
        )
        if self.trainer.world_size > 1:
            note = f"One device trains each plan; on {self.trainer.world_size} a batch is larger."
            advice = replace(advice, notes=(*advice.notes, note))
        self.advice = advice

    def save(self) -> list[Path]:
        """Write the advice, with a config that ``fit`` takes as it is."""
        assert self.advice is not None
        path = Path(self._folder) / CONFIG
        how = f"To use it: lightning-freeze fit --config {shlex.quote(str(path))}"
        return self.advice.save(self._folder, config_text(self.advice, self._recommended_config(), how))

    def after_fit(self) -> None:
        """Nothing is left to test."""

    def _new_module(self) -> LightningModule:
        """The module of the config, with new layers from the random numbers of the moment."""
        module: LightningModule = self.parser.instantiate_classes(self.config)["fit"]["model"]
        return module

    def _given_callbacks(self) -> list[Any]:
        given = self.config_init["fit"]["trainer"].get("callbacks") or []
        return list(given) if isinstance(given, list) else [given]

    def _recommended_config(self) -> dict[str, Any]:
        assert self.advice is not None
        config: dict[str, Any] = load_yaml(self._subcommand_parsers["fit"].dump(self.config["fit"], skip_none=True))
        given = config["trainer"].get("callbacks") or []
        if all("init_args" in entry for entry in self.advice.best.entries):  # else the callbacks of the config are best
            pairs = zip(given, self._given_callbacks(), strict=True)
            others = [entry for entry, made in pairs if not isinstance(made, LayerCallback | FrozenPrefixCache)]
            config["trainer"]["callbacks"] = [*others, *entries(self.advice)]
        return config


def main(args: Sequence[str]) -> None:
    """Run the command.

    Args:
        args: Options of its own, and those of ``fit``.

    Raises:
        ConfigurationError: If the set-up is wrong, as in ``fit``.
    """
    options, rest = _parser().parse_known_args(args)
    check_names(rest, _OPTIONS)
    given = {name: value for name, value in vars(options).items() if name != "output" and value is not None}
    cli = AdviseCLI(rest, options.output, **given)
    print(cli.advice)
    for path in cli.save():
        print(f"{path.name.partition('.')[0]}: {path}")
    print(f"use it: lightning-freeze fit --config {shlex.quote(str(Path(options.output) / CONFIG))}")


def _parser() -> CommandParser:
    parser = CommandParser("lightning-freeze advise", description=_DESCRIPTION, allow_abbrev=False)
    add = parser.add_argument
    add("--output", metavar="FOLDER", default="advice", help="where to write; a second call goes on there (advice)")
    add("--monitor", metavar="NAME", help="the metric that decides; by default the main metric of the task")
    add("--mode", choices=("min", "max"), help="whether smaller or larger is better, if the name does not tell")
    add("--budget", type=float, metavar="RUNS", help="what the rounds may cost, in runs of full length (4)")
    add("--seeds", type=int, metavar="N", help="seeds of the final (2)")
    add("--examples", type=int, metavar="N", help="training examples for the probes (1000)")
    add("--tolerance", type=float, metavar="X", help="how much worse a cheaper plan may be (0.005)")
    return parser
