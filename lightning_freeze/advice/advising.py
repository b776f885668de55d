"""``advise``: measure a module on its data, race a few plans, and recommend one."""

from __future__ import annotations

import copy
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.seed import isolate_rng

from lightning_freeze.advice import call_checks
from lightning_freeze.advice.advice_run import AdviceRun
from lightning_freeze.advice.fits.callbacks_in_words import described
from lightning_freeze.advice.fits.single_fit import FitSettings
from lightning_freeze.advice.metric import Mode, mode_of, monitor_of
from lightning_freeze.advice.result import Advice
from lightning_freeze.callbacks import FrozenPrefixCache
from lightning_freeze.callbacks.layer_callback import LayerCallback
from lightning_freeze.errors import ConfigurationError
from lightning_freeze.run_report import FreezeReport


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
    options = call_checks.trainer_options(trainer_options)
    call_checks.check_numbers(budget, seeds, examples, tolerance)
    call_checks.check_objects(datamodule, callbacks, monitor, mode, folder)
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
