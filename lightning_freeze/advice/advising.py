"""``advise``: measure a module on its data, race a few plans, and recommend one."""

from __future__ import annotations

import copy
import inspect
import logging
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.seed import isolate_rng

from lightning_freeze.advice.advice_run import AdviceRun
from lightning_freeze.advice.fits.callbacks_in_words import described
from lightning_freeze.advice.fits.single_fit import FitSettings
from lightning_freeze.advice.metric import Mode, mode_of, monitor_of
from lightning_freeze.advice.result import Advice
from lightning_freeze.callbacks import FrozenPrefixCache
from lightning_freeze.callbacks.layer_callback import LayerCallback
from lightning_freeze.errors import ConfigurationError, suggest
from lightning_freeze.run_report import FreezeReport

_OWN = ("callbacks", "monitor", "mode", "budget", "seeds", "examples", "tolerance", "folder", "verbose")
#: Arguments of the Trainer that are about where a run is written and shown, or on how many devices it runs.
_NOT_OF_A_FIT = frozenset(
    {
        *("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary", "profiler", "barebones"),
        *("devices", "num_nodes", "strategy", "fast_dev_run", "log_every_n_steps", "default_root_dir"),
    }
)


def advise(
    module: LightningModule | Callable[[], LightningModule],
    datamodule: LightningDataModule,
    *,
    callbacks: Sequence[Callback] = (),
    monitor: str | None = None,
    mode: Mode | None = None,
    budget: float = 4.0,
    seeds: int = 2,
    examples: int = 1000,
    tolerance: float = 0.005,
    folder: str | Path | None = None,
    verbose: bool = True,
    **trainer_options: Any,
) -> Advice:
    """Recommend what to freeze, after measuring it.

    One pass of the frozen encoder over a sample of the training data gives features at every depth, from which a
    linear probe and LogME show what the layers know already; gradients of a few batches show which layers the data
    want to change. They choose the plans. A short race (successive halving) finds the best two of them, and the best
    one trains at full length, with several seeds, beside full fine-tuning. The test data is never read.

    Args:
        module: The module as it is before training, or a function that makes it. With a function, each seed has new
            layers of its own, as in a real run; a module is copied for each fit.
        datamodule: Its data, with validation batches.
        callbacks: Callbacks of the run. Those that freeze layers or scale rates take part as a plan of their own, all
            others are copied into every fit; checkpoints and reports are left out.
        monitor: The metric that decides, as the module logs it in validation. By default the main metric of a
            :class:`TransformerModule`, else ``"val_loss"``.
        mode: ``"max"`` if larger is better. By default told from the name.
        budget: What the rounds of the race may cost, in runs of full length.
        seeds: Seeds of the final, 1 or more. The whole costs at most ``budget + 2 * seeds`` runs of full fine-tuning,
            and less where freezing makes a run cheaper.
        examples: Training examples for the probes.
        tolerance: A cheaper finalist is recommended if it is at most this much worse than the best one.
        folder: Where the scores of all fits and the cached hidden states are kept; an interrupted call then goes on
            where it was. By default nothing is kept.
        verbose: Whether to print a line for each fit.
        **trainer_options: Arguments of the run's Trainer: ``max_epochs`` or ``max_steps``, ``accelerator``,
            ``precision``, ``accumulate_grad_batches`` and so on. Every fit runs on one device and logs nothing.

    Returns:
        The advice: ``print`` shows it, ``save`` writes it.

    Raises:
        ConfigurationError: If the set-up is wrong, as in ``Trainer.fit``, or the metric is not logged.

    Examples:
        >>> advice = advise(module, data, max_epochs=3)  # doctest: +SKIP
        >>> advice.save("advice")  # doctest: +SKIP
    """
    options = _trainer_options(trainer_options)
    _check(budget, seeds, examples, tolerance)
    if mode not in (None, "min", "max"):
        raise ConfigurationError(f"mode={mode!r}: expected 'min' or 'max'.{suggest(mode, ('min', 'max'))}")
    make = _maker(module)
    own = [callback for callback in callbacks if isinstance(callback, LayerCallback)]
    others = [c for c in callbacks if not isinstance(c, LayerCallback | FrozenPrefixCache | FreezeReport | Checkpoint)]
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
    place = tempfile.TemporaryDirectory() if folder is None else nullcontext(str(folder))
    with _quiet(), isolate_rng(), place as working_folder:
        torch.manual_seed(0)
        example = make()
        monitor = monitor or monitor_of(example)
        settings = FitSettings(make, datamodule, monitor, options, make_callbacks=lambda: copy.deepcopy(others))
        run = AdviceRun(
            settings, example, mode or mode_of(monitor), budget, seeds, tolerance, Path(working_folder), verbose,
            None if folder is None else f"{folder}/cache",
        )  # fmt: skip
        return run.advise(examples, own, described(others), folder is not None)


def _check(budget: float, seeds: int, examples: int, tolerance: float) -> None:
    if not isinstance(budget, int | float) or isinstance(budget, bool) or not 0 < budget < math.inf:
        raise ConfigurationError(f"budget={budget!r}: expected a number of runs above 0, such as 4.")
    for name, value, least in (("seeds", seeds, 1), ("examples", examples, 10)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigurationError(f"{name}={value!r}: expected a whole number, {least} or more.")
    if not isinstance(tolerance, int | float) or isinstance(tolerance, bool) or not 0 <= tolerance < math.inf:
        raise ConfigurationError(f"tolerance={tolerance!r}: expected a number of 0 or more, in terms of the metric.")


def _trainer_options(given: dict[str, Any]) -> dict[str, Any]:
    known = inspect.signature(Trainer.__init__).parameters
    for name in given:
        if name not in known:
            raise ConfigurationError(f"{name} is no argument of advise or of Trainer.{suggest(name, [*known, *_OWN])}")
    lengths = [given.get("max_epochs"), None if given.get("max_steps", -1) == -1 else given["max_steps"]]
    if all(length is None for length in lengths):
        raise ConfigurationError("advise needs the length of the run: expected max_epochs or max_steps.")
    kept = {name: value for name, value in given.items() if name not in _NOT_OF_A_FIT}
    return {"num_sanity_val_steps": 0, **kept, "devices": 1}


def _maker(module: Any) -> Callable[[], LightningModule]:
    if isinstance(module, torch.nn.Module):
        return lambda: copy.deepcopy(module)  # type: ignore[return-value]
    if not callable(module):
        raise ConfigurationError(
            f"module is a {type(module).__name__}: expected a LightningModule, or a function that makes one."
        )
    return module  # type: ignore[no-any-return]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning from printing the same lines for every fit. Warnings of the package become notes."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    try:
        logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
