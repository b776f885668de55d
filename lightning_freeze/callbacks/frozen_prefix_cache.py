"""FrozenPrefixCache: compute the frozen prefix once."""

from __future__ import annotations

import os
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from lightning_freeze.arguments import check_arguments
from lightning_freeze.cache.attachment import Attachment
from lightning_freeze.cache.decision import Decision
from lightning_freeze.cache.frozen_prefix import FrozenPrefix
from lightning_freeze.cache.messages import GainMessage, Progress, frozen_parts_line, samples_in_epoch, summary_line
from lightning_freeze.cache.offload import OffloadError
from lightning_freeze.cache.storage import DTYPES, Storage, open_storage
from lightning_freeze.cache.store.sizes import parse_size
from lightning_freeze.callbacks.layer_callback import Groups
from lightning_freeze.callbacks.phased_fine_tuning import PhasedFineTuning
from lightning_freeze.errors import ConfigurationError, suggest
from lightning_freeze.namespaces import Callback


class FrozenPrefixCache(Callback):
    """Computes the frozen first layers once for each sample, and then starts at the first layer that trains.

    A frozen layer with no trainable layer before it produces the same hidden states for the same input in every epoch.
    They are stored under a hash of the input, and read when that input comes again: in another epoch, order, batch or
    padding, in validation, and with ``cache_dir`` in another run or process. Works with any callback that freezes
    layers, or with none: the frozen layers are read off ``requires_grad`` at each batch.

    Where skipping could change a result (dropout in frozen layers, a layer above that reads the output of an earlier
    one, a forward hook on a skipped module), the callback warns, switches itself off, and the run continues without it.

    Under ``ModelParallelStrategy`` (FSDP2, tensor parallel) all ranks decide together: the prefix is skipped where
    every rank has found all of its samples. Under FSDP of the first generation and DeepSpeed the callback does nothing.

    Args:
        cache_dir: Folder in which hidden states are kept for later runs. ``None`` keeps them in memory only, as long
            as the callback exists. Give one on a local disk: on a network file system, where LMDB must not be used,
            a folder in ``TMPDIR`` takes its place, and one warning says so.
        max_memory: The most memory to use, as a number of bytes or text such as ``"4GiB"``. What does not fit is
            computed again.
        max_disk: The most disk space to use in ``cache_dir``; ``None`` for no limit.
        dtype: ``"bfloat16"`` or ``"float16"`` to store in half the space of float32, at the cost of rounding. ``None``
            stores what was computed, bit for bit.
        verify: Number of batches with hits that are compared with a real forward pass, for each set of frozen layers.
            On the CPU the first comparison uses two samples if all samples of the batch are found.
        verbose: Whether to print the expected gain at the start and the actual gain at the end.
        groups: An explicit, ordered map from layer name to module-name prefixes, instead of the layers that are found
            automatically; see :class:`~lightning_freeze.LayerStack`.
        trim_padding: Whether samples are stored without their padding, so that they hit in any batch. Gradients show
            whether anything reads the positions of padding. They do not show a read without a gradient (a target made
            of detached hidden states, a logged norm). ``False`` stores all positions.
        max_accelerator_memory: The most memory of the accelerator to use for hidden states that were read once, so that
            they need not be copied from RAM again. None by default, because only you know what the training leaves.
        offload: Whether the weights of skipped layers leave the memory of the device while every batch skips them: from
            an accelerator to host memory, on the CPU to a file that the system reads again when it is needed. They come
            back by themselves before the forward pass of the model runs these layers, and before they are saved. A call
            of a skipped layer by itself (``block(hidden)``) does not bring them back. On an accelerator it fails,
            because its weights are on another device.

    Raises:
        ConfigurationError: If a value is out of range, or a library that is needed is not installed.

    Examples:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[LayerFreezing("75%"), FrozenPrefixCache()])  # doctest: +SKIP
    """

    def __init__(
        self,
        cache_dir: str | Path | None = None,
        max_memory: str | int | None = "4GiB",
        max_disk: str | int | None = None,
        dtype: str | None = None,
        verify: int = 1,
        verbose: bool = True,
        groups: Groups | None = None,
        max_accelerator_memory: str | int | None = None,
        trim_padding: bool = True,
        offload: bool = False,
    ) -> None:
        check_arguments(FrozenPrefixCache, locals(), needs={"max_disk": "cache_dir"})
        if cache_dir is not None and not os.fspath(cache_dir):
            raise ConfigurationError("FrozenPrefixCache(cache_dir=''): expected a folder, or None.")
        if dtype not in (None, *DTYPES):
            raise ConfigurationError(
                f"FrozenPrefixCache(dtype={dtype!r}): expected None, 'bfloat16' or 'float16'."
                f"{suggest(str(dtype), DTYPES)}"
            )
        if verify < 0:
            raise ConfigurationError(
                f"FrozenPrefixCache(verify={verify!r}): expected a whole number of batches, 0 or more."
            )
        for name, size in (
            ("max_disk", max_disk),
            ("max_memory", max_memory),
            ("max_accelerator_memory", max_accelerator_memory),
        ):
            parse_size(size, f"FrozenPrefixCache({name}=...)")
        self.cache_dir = Path(cache_dir) if cache_dir is not None else None
        self.max_memory = max_memory
        self.max_disk = max_disk
        self.dtype = dtype
        self.verify = verify
        self.verbose = verbose
        self.groups = groups
        self.trim_padding = trim_padding
        self.max_accelerator_memory = max_accelerator_memory
        self.offload = offload
        self._store: Any = None
        self._attachment = Attachment()
        self._gain = GainMessage()
        self._progress = Progress()

    @property
    def hit_rate(self) -> float:
        """Share of the samples since the start of the fit (or test, or prediction) whose hidden states were read."""
        samples = sum(tower.tally.samples for tower in self._towers)
        return sum(tower.tally.hits for tower in self._towers) / samples if samples else 0.0

    @property
    def reasons(self) -> dict[str, str]:
        """For each tower that is switched off, the reason."""
        return {tower.tower.name: tower.off for tower in self._towers if tower.off is not None}

    def explain(self) -> dict[str, Decision]:
        """Explain what happened in the latest forward pass of each tower.

        Returns:
            For each tower, by name, a decision with the attributes ``outcome`` (such as ``"skip"``) and ``reason``.
            ``str`` joins both, as in ``"skip: all 8 samples were found"``. The only tower of a model is named ``""``.
            A tower that is switched off has the outcome ``"switch off"``, one that cannot be cached ``"leave alone"``.
            A module without any tower has one entry, named ``""``. A tower that has not run yet has no entry, so the
            result is empty before a run. After a run it stays as it was in the last pass.
        """
        return self._attachment.explain()

    @property
    def _towers(self) -> list[FrozenPrefix]:
        return self._attachment.prefixes

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: D102
        others = [c for c in trainer.callbacks if isinstance(c, FrozenPrefixCache)]  # type: ignore[attr-defined]
        if len(others) > 1:
            raise ConfigurationError(
                f"The trainer has {len(others)} FrozenPrefixCache callbacks: expected one, for all layers and loops."
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        self._attach(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        self._begin_loop(trainer, pl_module, thorough=True)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        self._begin_loop(trainer, pl_module, thorough=True)
        if self._attachment.cached is not None:
            self._attachment.cached.expect(samples_in_epoch(trainer))
        self._progress.begin(self._towers)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        self._begin_loop(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        # Callbacks that swapped weights for validation restore them at this point, which no version counter may show.
        if self._attachment.cached is not None:
            self._attachment.cached.recheck(thorough=False)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        self._begin_loop(trainer, pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        self._begin_loop(trainer, pl_module)

    def on_train_batch_start(  # noqa: D102
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._attachment.cached is None:
            return
        if self.verbose:
            self._gain.start_batch(pl_module, self._towers)
        schedules = [c for c in trainer.callbacks if isinstance(c, PhasedFineTuning)]  # type: ignore[attr-defined]
        self._attachment.cached.fill_ahead([s.phase for s in schedules], lambda: [s.frozen_ahead() for s in schedules])

    def on_train_batch_end(  # noqa: D102
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._attachment.end_batch()
        self._attachment.end_training_batch()
        self._gain.end_batch(pl_module, self._towers)
        if (line := frozen_parts_line(self._attachment.frozen_parts())) and self.verbose:
            pl_module.print(line)
        self._progress.log(trainer, pl_module, self._towers, lambda: self._attachment.stored_bytes, shows=self.verbose)

    def on_validation_batch_end(  # noqa: D102
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        self._attachment.end_batch()

    def on_test_batch_end(  # noqa: D102
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        self._attachment.end_batch()

    def on_predict_batch_end(  # noqa: D102
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        self._attachment.end_batch()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        # The strategy moves the module to the CPU before `teardown`. Weights that come back to the accelerator after
        # that would leave the module on two devices.
        self._attachment.restore_weights()
        self._print_summary(pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        self._print_summary(pl_module)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        self._print_summary(pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: D102
        self._detach()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:  # noqa: D102
        # The error of the run matters more, and the strategy moves the whole module to the CPU now.
        with suppress(OffloadError):
            self._detach()

    def _attach(self, trainer: Trainer, module: LightningModule) -> None:
        is_new = self._attachment.attach(trainer, module, self.groups, self._open_storage, self._report_switch_off)
        if is_new:
            self._gain.close()
            self._gain = GainMessage()

    def _open_storage(self) -> Storage:
        storage = open_storage(
            self._store,
            self.cache_dir,
            self.max_memory,
            self.max_disk,
            self.max_accelerator_memory,
            self.dtype,
            self.verify,
            self.trim_padding,
            self.offload,
        )
        self._store = storage.store
        return storage

    def _begin_loop(self, trainer: Trainer, module: LightningModule, thorough: bool = False) -> None:
        self._attach(trainer, module)
        self._attachment.begin_loop(thorough)

    def _detach(self) -> None:
        self._gain.close()
        self._attachment.detach()

    def _print_summary(self, module: LightningModule) -> None:
        if self.verbose and any(tower.tally.samples for tower in self._towers):
            module.print(summary_line(self._towers, self._attachment.stored_bytes))

    def _report_switch_off(self, prefix: FrozenPrefix, reason: str, is_fault: bool) -> None:
        module = self._attachment.module
        rank = 0 if module is None else module.global_rank
        if rank and prefix.tower.is_sharded:
            return  # all ranks switch off together, for a reason that the first one reports
        # Other ranks have different batches, and reasons of their own.
        where = f" on rank {rank}" if rank else ""
        if is_fault:
            warnings.warn(f"FrozenPrefixCache is switched off for {prefix.tower.label}{where}: {reason}.", stacklevel=2)
        elif self.verbose and module is not None:
            # `LightningModule.print` is silent on all ranks but the first.
            tell = print if rank else module.print
            tell(f"Frozen prefix cache: not used for {prefix.tower.label}{where}: {reason}.")

    def __getstate__(self) -> dict[str, Any]:
        # A copy or a pickle of a callback holds its configuration, not the run that it takes part in.
        run = {"_store": None, "_attachment": Attachment(), "_gain": GainMessage(), "_progress": Progress()}
        return {k: v for k, v in vars(self).items() if k not in ("log", "log_dict")} | run
