"""``run_fit``: one fit of one config in this process, measured."""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lightning_freeze.callbacks.frozen_prefix_cache import FrozenPrefixCache
from lightning_freeze.cli.runs.divergence import check_finite
from lightning_freeze.cli.trainer_commands import FreezeCLI
from lightning_freeze.comparison.peak_memory import PeakMemory
from lightning_freeze.comparison.records import FitResult
from lightning_freeze.forgetting import Forgetting
from lightning_freeze.run_warnings.record import warnings_of

#: A score of what a model could do before the fit. It is better if it is larger, unless the callable has an attribute
#: ``higher_is_better`` that is false, as in torchmetrics.
ForgettingMetric = Callable[[LightningModule, LightningDataModule], float]
_QUIET = {"enable_progress_bar": False, "enable_model_summary": False}


def run_fit(
    config: Mapping[str, Any],
    seed: int,
    directory: str | Path,
    *,
    forgetting: ForgettingMetric | None = None,
    keep_checkpoint: bool = False,
) -> FitResult:
    """Fit as ``lightning-freeze fit`` does, test as ``lightning-freeze test`` does, and measure both.

    Args:
        config: The config of a fit, as dicts and lists.
        seed: The seed of the run (``seed_everything``).
        directory: Where the config, the logs and the checkpoints go. Anything in it is removed first.
        forgetting: A metric that is computed before the fit and for the weights that are measured. Without one, a
            Forgetting callback of the config says how much is forgotten: its ``ranking_drop``.
        keep_checkpoint: Whether the checkpoints are left there.

    Returns:
        The measurements.

    Raises:
        ConfigurationError: If the set-up is wrong.
        DivergedError: If a loss or a weight is not finite at the end.
        SystemExit: With code 2 if the config cannot be parsed; the message is on stderr.
    """
    folder = Path(directory)
    file = folder / "config.yaml"
    if is_first_process():  # before the strategy starts further processes, which come here too
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(
            yaml.safe_dump(_logged_in(config, folder), sort_keys=False, allow_unicode=True), encoding="utf-8"
        )
    with warnings.catch_warnings():
        # Lightning asks for the arguments of the process, which are those of another command.
        warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
        cli = _MeasuredCLI([f"--config={file}", f"--seed_everything={seed}"], forgetting)
    return _measured(cli, forgetting, keep_checkpoint)


def is_first_process() -> bool:
    """Whether this is the process of a fit that writes its files; a strategy may have started others."""
    return int(getattr(rank_zero_only, "rank", 0)) == 0


def _logged_in(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The config with its logs in a folder, without progress bars and without a page about each run."""
    trainer = {**(config.get("trainer") or {}), **_QUIET, "default_root_dir": str(folder)}
    if not trainer.get("barebones"):
        trainer["logger"] = {
            "class_path": "lightning.pytorch.loggers.CSVLogger",
            "init_args": {"save_dir": str(folder), "name": "", "version": "logs"},
        }
    return {**config, "trainer": trainer, "report": False}


class _MeasuredCLI(FreezeCLI):
    """``fit`` with measurements."""

    def __init__(self, args: list[str], forgetting: ForgettingMetric | None) -> None:
        self.score_before: float | None = None
        self.memory = PeakMemory()
        self.watch = _FitWatch()
        self._forgetting = forgetting
        super().__init__(args=["fit", *args], trainer_defaults={"callbacks": [self.watch]}, save_config_callback=None)

    def fit(self, model: LightningModule, datamodule: LightningDataModule, **kwargs: Any) -> None:
        """Fit, with a watch on memory.

        Args:
            model: The module.
            datamodule: The data.
            **kwargs: Further arguments of ``Trainer.fit``.
        """
        if self._forgetting is not None:
            self.score_before = float(self._forgetting(model, datamodule))
        self.memory.begin(self.trainer.strategy.root_device)
        self.trainer.fit(model, datamodule=datamodule, **kwargs)
        self.memory.end()

    def after_fit(self) -> None:
        """Refuse weights that are of no use, and a fit that a signal has ended early.

        Raises:
            DivergedError: If a loss or a weight is not finite.
            KeyboardInterrupt: If the fit was interrupted.
        """
        if self.trainer.interrupted:
            raise KeyboardInterrupt
        check_finite(self.trainer)


class _FitWatch(Callback):
    """Takes the time of a fit, and counts the parameters that train in each batch."""

    def __init__(self) -> None:
        self.most = self.total = self.batches = 0
        self.seconds = 0.0
        self._began = 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._began = time.perf_counter()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize(trainer.strategy.root_device)
        self.seconds = time.perf_counter() - self._began

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        trained = sum(p.numel() for p in pl_module.parameters() if p.requires_grad)
        self.most = max(self.most, trained)
        self.total += trained
        self.batches += 1


def _measured(cli: _MeasuredCLI, forgetting: ForgettingMetric | None, keep_checkpoint: bool) -> FitResult:
    trainer, model, data = cli.trainer, cli.model, cli.datamodule
    steps, hits = trainer.global_step, _cache_hit_rate(trainer)
    warned = tuple(dict.fromkeys(warning.message for warning in warnings_of(trainer)))
    best = str(getattr(trainer.checkpoint_callback, "best_model_path", "") or "")
    stage = _stage(model, data)
    if stage == "fit":
        metrics: Mapping[str, Any] = dict(trainer.callback_metrics)
    else:
        run = trainer.test if stage == "test" else trainer.validate
        metrics = {k: v for each in run(model, data, ckpt_path=best or None, verbose=False) for k, v in each.items()}
    metrics = {**metrics, **_forgetting_metrics(trainer)}
    lost = None
    if forgetting is not None and cli.score_before is not None:
        change = cli.score_before - float(forgetting(model, data))
        lost = change if getattr(forgetting, "higher_is_better", True) else -change
    drift = next((each.result for each in trainer.callbacks if isinstance(each, Forgetting)), None)  # type: ignore[attr-defined]
    if drift is not None:
        drift_metrics = drift.metrics()
        metrics = {**metrics, **drift_metrics}
        lost = drift_metrics["forgetting/ranking_drop"] if forgetting is None else lost
    if best and not keep_checkpoint and trainer.is_global_zero:
        shutil.rmtree(Path(best).parent, ignore_errors=True)
    return FitResult(
        metrics={name: float(value) for name, value in metrics.items()},
        stage=stage,
        main_metric=_main_metric(model, stage, metrics),
        seconds=cli.watch.seconds,
        peak_memory=cli.memory.peak,
        memory_of=cli.memory.of,
        parameters=sum(p.numel() for p in model.parameters()),
        trainable_parameters=cli.watch.most,
        mean_trainable=cli.watch.total / max(1, cli.watch.batches),
        steps=steps,
        cache_hit_rate=hits,
        forgetting=lost,
        checkpoint=best if keep_checkpoint else "",
        environment=_environment(trainer),
        warnings=warned,
    )


def _stage(model: LightningModule, data: LightningDataModule) -> Literal["test", "validate", "fit"]:
    """What the weights can be measured on."""
    tables = getattr(data, "tables", None)
    for stage, split in (("test", "test"), ("validate", "val")):
        has_data = split in tables if tables is not None else is_overridden(f"{split}_dataloader", data)
        if has_data and is_overridden("test_step" if stage == "test" else "validation_step", model):
            return stage  # type: ignore[return-value]
    return "fit"


def _forgetting_metrics(trainer: Trainer) -> dict[str, float]:
    """What the callback Forgetting has measured last, which is of the weights that were tested."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    found = [each.result.metrics() for each in callbacks if isinstance(each, Forgetting) and each.result is not None]
    return {name: value for metrics in found for name, value in metrics.items()}


def _main_metric(model: LightningModule, stage: str, metrics: Mapping[str, Any]) -> str:
    prefix = {"test": "test", "validate": "val", "fit": "train"}[stage]
    wanted = getattr(getattr(model, "task", None), "monitor", "loss")
    losses = [name for name in metrics if name.endswith("loss")]
    return next((name for name in (f"{prefix}_{wanted}", *losses, *metrics) if name in metrics), f"{prefix}_loss")


def _environment(trainer: Trainer) -> str:
    device = trainer.strategy.root_device
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
    devices = f"{trainer.world_size} x {kind}" if trainer.world_size > 1 else kind
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "lightning", "lightning-freeze"))
    return f"{devices}, {versions}"


def _cache_hit_rate(trainer: Trainer) -> float | None:
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return next((each.hit_rate for each in callbacks if isinstance(each, FrozenPrefixCache)), None)
