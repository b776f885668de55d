"""FreezeReport: when the history of a run is filled, logged and written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from lightning_freeze.arguments import check_arguments
from lightning_freeze.callbacks.layer_callback import Groups
from lightning_freeze.errors import ConfigurationError
from lightning_freeze.namespaces import Callback
from lightning_freeze.pages.rendering import missing_libraries
from lightning_freeze.run_report.measures.warning_log import WarningLog
from lightning_freeze.run_report.plan_file import read_plan
from lightning_freeze.run_report.recorder import Recorder
from lightning_freeze.run_report.report_file import ReportFile
from lightning_freeze.run_report.start import stack_from, stack_of_run, start_recorder


class FreezeReport(Callback):
    """Writes one page that shows what happened in a run, and logs what it measures.

    The page shows when which layer trained and at which rate, over the validation metric, and why each phase began; the
    time of a batch and the memory of gradients and optimizer state in each phase; how far each layer moved from its
    starting weights; the norms of its gradients; where backward stops; what FrozenPrefixCache read; and the warnings of
    the run. It is one HTML file that needs no network. It is written at the end of each epoch, when the run ends or
    fails, and after a validation in mid-epoch if more than a minute has passed. A resumed run continues its history.

    Works beside any callbacks, or none: what trains is read off ``requires_grad``. It never changes the run, waits for
    the device only when it measures, communicates with no other process, and no failure of it ends the run.
    ``docs/report.md`` lists the names of the logged scalars and what each measurement costs.

    Args:
        dirpath: Folder of the page. ``None`` for the log folder of the run (``trainer.log_dir``), or
            ``trainer.default_root_dir`` without a logger.
        filename: Name of the page.
        log: Whether to log the measurements to all loggers of the trainer.
        every_n_steps: How many optimizer steps lie between two measurements of gradients, rates and distances. ``None``
            for about 100 measurements in the run, but 10 steps at least and 50 at most. The first batch of a phase is
            always measured.
        monitor: The validation metric that the page shows first. ``None`` for the one that a schedule or another
            callback watches, or ``val_loss``.
        mode: Whether a lower (``"min"``) or a higher (``"max"``) value of ``monitor`` is better. ``None`` for what its
            name suggests.
        plan: A file that ``lightning-freeze plan --output plan.json`` has written. The page then compares the time and
            memory of each phase with it.
        groups: An explicit, ordered map from layer name to module-name prefixes, instead of the layers that the other
            callbacks use, or that are found automatically.
        verbose: Whether to print the path of the page at the end.

    Raises:
        ConfigurationError: If a value is out of range, the plan cannot be read, or the trainer has two of these
            callbacks.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[GradualUnfreezing(), FreezeReport()])  # doctest: +SKIP
    """

    def __init__(
        self,
        dirpath: str | Path | None = None,
        filename: str = "freeze_report.html",
        log: bool = True,
        every_n_steps: int | None = None,
        monitor: str | None = None,
        mode: Literal["min", "max"] | None = None,
        plan: str | Path | None = None,
        groups: Groups | None = None,
        verbose: bool = True,
    ) -> None:
        check_arguments(FreezeReport, locals(), needs={"mode": "monitor"})
        if dirpath is not None and not os.fspath(dirpath):
            raise ConfigurationError("FreezeReport(dirpath=''): expected a folder, or None.")
        if Path(filename).name != filename or not filename.lower().endswith((".html", ".htm")):
            raise ConfigurationError(
                f"FreezeReport(filename={filename!r}): expected the name of an HTML file, such as 'freeze_report.html'."
            )
        if every_n_steps is not None and every_n_steps < 1:
            raise ConfigurationError(
                f"FreezeReport(every_n_steps={every_n_steps!r}): expected a whole number of steps, 1 or more, or None."
            )
        if monitor == "":
            raise ConfigurationError("FreezeReport(monitor=''): expected the name of a logged metric, or None.")
        self.dirpath = dirpath
        self.filename = filename
        self.log_scalars = log
        self.every_n_steps = every_n_steps
        self.monitor = monitor
        self.mode = mode
        self.plan = plan
        self.groups = groups
        self.verbose = verbose
        self._plan = None if plan is None else read_plan(plan)
        self._state: dict[str, Any] = {}
        self._is_loaded = False
        self._recorder: Recorder | None = None
        self._file: ReportFile | None = None
        self._warnings: WarningLog | None = None
        self._early_warnings: list[str] = []

    @property
    def path(self) -> str | None:
        """Path of the page; ``None`` before a fit, and where none is written."""
        return None if self._file is None else self._file.path

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: D102
        others = [c for c in trainer.callbacks if isinstance(c, FreezeReport)]  # type: ignore[attr-defined]
        if len(others) > 1:
            raise ConfigurationError(f"The trainer has {len(others)} FreezeReport callbacks: expected one.")
        if stage != TrainerFn.FITTING:
            return
        self._close()
        self._file, self._is_loaded, self._early_warnings = None, False, []
        if trainer.is_global_zero:
            self._warnings = WarningLog(self._add_warning)
        if missing := missing_libraries():
            rank_zero_info(
                f"FreezeReport writes no page, because {' and '.join(missing)} cannot be imported: "
                f"pip install 'lightning-freeze[report]'"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        # A broadcast, so every process takes part in it.
        folder = self.dirpath or trainer.log_dir or trainer.default_root_dir
        own_stack = None if self.groups is None else stack_from(pl_module, self.groups)
        if not trainer.is_global_zero:
            return
        with self._guarded():
            is_own = self._is_loaded or bool(trainer.global_step or trainer.current_epoch)
            stack = own_stack or stack_of_run(pl_module)
            self._recorder = start_recorder(self, trainer, pl_module, stack, self._state if is_own else {})
            for text in self._early_warnings:
                self._recorder.history.add_warning(self._recorder.position, text)
            is_written = not getattr(trainer, "fast_dev_run", False) and not missing_libraries()
            self._file = ReportFile(os.fspath(folder), self.filename, self._plan) if is_written else None

    def on_train_batch_start(  # noqa: D102
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._recorder is not None:
            with self._guarded():
                self._recorder.start_batch()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:  # noqa: D102
        if self._recorder is not None:
            with self._guarded():
                self._recorder.before_backward()

    def on_before_optimizer_step(  # noqa: D102
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        if self._recorder is not None:
            with self._guarded():
                self._recorder.before_step(optimizer)

    def on_train_batch_end(  # noqa: D102
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._recorder is not None:
            with self._guarded():
                self._recorder.end_batch(outputs)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        logged = trainer.callback_metrics  # reading it may synchronise a metric, so every process reads it
        if self._recorder is not None and not trainer.sanity_checking:
            with self._guarded():
                self._recorder.end_validation(logged)
            if self._file is not None and self._file.is_old():
                self._write()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        self._write()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        self._end("training was stopped" if trainer.should_stop else "training ended as planned")
        if self.verbose and self._file is not None and self._file.is_written:
            pl_module.print(f"freeze report: {os.path.relpath(self._file.path)}")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:  # noqa: D102
        first = str(exception).strip().partition("\n")[0]
        self._end(f"training ended with {type(exception).__name__}{f': {first}' if first else ''}")
        self._close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: D102
        self._close()

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        with self._guarded():
            if self._recorder is not None:
                self._state = self._recorder.state_dict()
        return self._state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # noqa: D102
        self._state, self._is_loaded = state_dict, True

    def _end(self, text: str) -> None:
        if self._recorder is not None:
            with self._guarded():
                self._recorder.add_event(text)
            self._write(is_last=True)

    def _write(self, is_last: bool = False) -> None:
        if self._recorder is None or self._file is None:
            return
        with self._guarded():
            self._recorder.refresh()
            self._file.write(self._recorder.history, self._recorder.facts(), is_last)

    def _add_warning(self, text: str) -> None:
        if self._recorder is None:
            self._early_warnings.append(text)
        else:
            self._recorder.history.add_warning(self._recorder.position, text)

    def _close(self) -> None:
        self.state_dict()
        self._recorder = None
        if self._warnings is not None:
            self._warnings.close()
            self._warnings = None

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Switch the report off if it fails: it must not end a run."""
        try:
            with torch.no_grad():
                yield
        except Exception as error:
            self._recorder = None
            rank_zero_warn(
                f"FreezeReport is switched off, because it failed with {type(error).__name__}: {error}. The run goes "
                f"on without it."
            )

    def __getstate__(self) -> dict[str, Any]:
        # A copy or a pickle of a callback is its configuration and history, never the run that it takes part in.
        own = {name: value for name, value in vars(self).items() if name not in ("log", "log_dict")}
        run: dict[str, Any] = {
            "_recorder": None,
            "_file": None,
            "_warnings": None,
            "_early_warnings": [],
            "_is_loaded": False,
        }
        return own | run | {"_state": self.state_dict()}
