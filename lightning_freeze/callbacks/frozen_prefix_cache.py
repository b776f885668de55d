"""Computing the frozen prefix once."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any
from weakref import ReferenceType

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lightning_freeze.arguments import check_arguments
from lightning_freeze.cache.cached_module import CachedModule, Keeping
from lightning_freeze.cache.frozen_prefix import FrozenPrefix
from lightning_freeze.cache.identity.keys import new_hash
from lightning_freeze.cache.messages import Progress, gain_line, samples_in_epoch, summary_line
from lightning_freeze.cache.prefix.predicted_gain import OutsideWork, is_sharded
from lightning_freeze.cache.store.accelerator import AcceleratorTier
from lightning_freeze.cache.store.sizes import default_memory, parse_size
from lightning_freeze.callbacks.base import Groups
from lightning_freeze.callbacks.phased_fine_tuning import PhasedFineTuning
from lightning_freeze.errors import ConfigurationError, suggest

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class FrozenPrefixCache(Callback):
    """Computes the frozen first layers once for each sample, and starts at the first layer that trains after that.

    A layer that is frozen, with nothing that trains before it, gives the same hidden states for the same input in every
    epoch. They are stored under a hash of the input, and read back when that input comes again: in another epoch, in
    another order, batch or padding, in validation, and with ``cache_dir`` in another run or process. Stands beside any
    callback that freezes, or none; which layers are frozen is read off ``requires_grad`` at each batch.

    Where skipping could change a result (dropout in frozen layers, a layer above that reads an earlier one's output,
    a forward hook on a skipped module), it says so and switches itself off; the run goes on.

    Args:
        cache_dir: Folder in which hidden states are kept for later runs. ``None`` keeps them in memory only, until the
            callback is gone.
        max_memory: The most memory to use, as a number of bytes or text such as ``"4GiB"``. What does not fit is
            computed again.
        max_disk: The most disk space to use in ``cache_dir``; ``None`` for no limit.
        dtype: ``"bfloat16"`` or ``"float16"`` to store in half the space of float32, at the cost of rounding. ``None``
            stores what was computed, bit for bit.
        verify: How many batches with hits are compared with a real forward pass, for each set of layers that is frozen;
            on the CPU two samples stand for the first one, if it is found as a whole.
        verbose: Whether to say at the start what is gained and at the end what was.
        groups: An explicit, ordered map from layer name to module-name prefixes, instead of the layers that are found
            automatically; see :class:`~lightning_freeze.LayerStack`.
        trim_padding: Whether samples are stored without their padding, so that they hit in any batch. Whether anything
            reads what stands in the positions of padding is seen from gradients; something that does so without one
            (a target made of detached hidden states, a logged norm) is not. ``False`` stores all positions.
        max_accelerator_memory: The most memory of the accelerator to use for hidden states that were used once, beside
            RAM, so that they need not be copied there again. None by default: only you know what the training leaves.

    Raises:
        ConfigurationError: If a value is out of range, or a library that is needed is not installed.

    Example:
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
    ) -> None:
        check_arguments(FrozenPrefixCache, locals())
        if dtype not in (None, *_DTYPES):
            raise ConfigurationError(
                f"FrozenPrefixCache(dtype={dtype!r}): expected None, 'bfloat16' or 'float16'."
                f"{suggest(str(dtype), _DTYPES)}"
            )
        if verify < 0:
            raise ConfigurationError(
                f"FrozenPrefixCache(verify={verify!r}): expected a whole number of batches, 0 or more."
            )
        self.cache_dir = Path(cache_dir) if cache_dir is not None else None
        self.max_memory = max_memory
        self.max_disk = max_disk
        self.dtype = dtype
        self.verify = verify
        self.verbose = verbose
        self.groups = groups
        self.trim_padding = trim_padding
        parse_size(max_disk, "FrozenPrefixCache(max_disk=...)")
        parse_size(max_memory, "FrozenPrefixCache(max_memory=...)")
        self.max_accelerator_memory = max_accelerator_memory
        parse_size(max_accelerator_memory, "FrozenPrefixCache(max_accelerator_memory=...)")
        self._accelerator: AcceleratorTier | None = None
        self._store: Any = None
        self._cached: CachedModule | None = None
        self._module: LightningModule | None = None
        self._floors: dict[str, int] = {}
        self._fitted: ReferenceType[LightningModule] | None = None
        self._outside: OutsideWork | None = None
        self._said: set[str] = set()
        self._progress = Progress()

    @property
    def hit_rate(self) -> float:
        """Share of the samples since the start of the fit (or test, or prediction) whose hidden states were read."""
        samples = sum(tower.tally.samples for tower in self._towers)
        return sum(tower.tally.hits for tower in self._towers) / samples if samples else 0.0

    @property
    def reasons(self) -> dict[str, str]:
        """Of each tower that is switched off, why."""
        return {tower.tower.name: tower.off for tower in self._towers if tower.off is not None}

    @property
    def _towers(self) -> list[FrozenPrefix]:
        return self._cached.prefixes if self._cached is not None else []

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
        for tower in self._towers:
            tower.entries.expected = samples_in_epoch(trainer)
        self._progress.begin(self._towers)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        self._begin_loop(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        # Whoever has swapped weights for the validation puts them back now, in ways that leave no trace.
        if self._cached is not None:
            self._cached.look_again(thorough=False)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        self._begin_loop(trainer, pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        self._begin_loop(trainer, pl_module)

    def on_train_batch_start(  # noqa: D102
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._cached is None:
            return
        is_used = any(tower.off is None and tower.tower.boundary() for tower in self._towers)
        if self.verbose and self._outside is None and "gain" not in self._said and is_used:
            self._outside = OutsideWork(pl_module, [tower.tower.entry for tower in self._towers])
        schedules = [c for c in trainer.callbacks if isinstance(c, PhasedFineTuning)]  # type: ignore[attr-defined]
        self._cached.foresee([s.phase for s in schedules], lambda: [s.freezes[s.phase :] for s in schedules])

    def on_train_batch_end(  # noqa: D102
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._end_batch()
        if self._outside is not None:
            self._outside.close()
            self._say_gain(pl_module)
            self._outside = None
        self._progress.log(trainer, pl_module, self._towers, self._bytes, shows=self.verbose)

    def on_validation_batch_end(  # noqa: D102
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        self._end_batch()

    def on_test_batch_end(  # noqa: D102
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        self._end_batch()

    def on_predict_batch_end(  # noqa: D102
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        self._end_batch()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        self._say_summary(pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        self._say_summary(pl_module)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        self._say_summary(pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: D102
        self._detach()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:  # noqa: D102
        self._detach()

    def _attach(self, trainer: Trainer, module: LightningModule) -> None:
        if self._module is module:
            return
        self._detach()
        self._module, self._cached, self._said = module, None, set()
        if is_sharded(trainer.strategy):
            rank_zero_warn(
                f"FrozenPrefixCache does nothing under {type(trainer.strategy).__name__}: where weights are sharded, "
                f"all ranks must run the same layers."
            )
            return
        # Nothing trains outside of a fit: the prefix that it left is as good as frozen.
        is_fitted = self._fitted is not None and self._fitted() is module
        floors = self._floors if is_fitted and trainer.state.fn != TrainerFn.FITTING else {}
        self._cached = CachedModule(module, self.groups, self._keeping(), floors, self._say_off)
        if not self._towers:
            problems = "; ".join(self._cached.problems)
            rank_zero_warn(f"FrozenPrefixCache does nothing for {type(module).__name__}: {problems}.")

    def _keeping(self) -> Keeping:
        memory, disk = parse_size(self.max_memory), parse_size(self.max_disk)
        if self._store is None:
            self._store = _open_store(self.cache_dir, self.max_memory, self.max_disk)
        if on_device := parse_size(self.max_accelerator_memory):
            self._accelerator = AcceleratorTier(on_device)
        budget = None
        if self.cache_dir is None or disk is not None:
            budget = (default_memory() if memory is None else memory) + (disk or 0)
        dtype = _DTYPES.get(self.dtype or "")
        return Keeping(self._store, self._accelerator, dtype, budget, self.verify, self.trim_padding)

    def _detach(self) -> None:
        if self._module is not None:
            self._fitted = weakref.ref(self._module)
            if self._cached is not None:
                self._floors |= self._cached.boundaries
                self._cached.close()
        self._module = None
        if self._outside is not None:
            self._outside.close()
            self._outside = None
        if self._accelerator is not None:
            self._accelerator.clear()
            self._accelerator = None
        if self._store is not None:
            self._store.rest()

    def _begin_loop(self, trainer: Trainer, module: LightningModule, thorough: bool = False) -> None:
        self._attach(trainer, module)
        if self._cached is not None:
            self._cached.end_step()
            self._cached.look_again(thorough)

    def _end_batch(self) -> None:
        if self._cached is not None:
            self._cached.end_step()
            self._cached.move_inside()

    def _bytes(self) -> int:
        held = int(getattr(getattr(self._store, "stats", None), "stored_bytes", 0))
        return held + (self._accelerator.bytes if self._accelerator is not None else 0)

    def _say_gain(self, module: LightningModule) -> None:
        """One line on what the cache is worth, once the first batch has been checked."""
        line = gain_line(self._towers, self._outside.flops if self._outside is not None else 0)
        if line and self.verbose:
            self._said.add("gain")
            module.print(line)

    def _say_summary(self, module: LightningModule) -> None:
        if self.verbose and any(tower.tally.samples for tower in self._towers):
            module.print(summary_line(self._towers, self._bytes()))

    def _say_off(self, prefix: FrozenPrefix, reason: str, is_fault: bool) -> None:
        if is_fault:
            rank_zero_warn(f"FrozenPrefixCache is switched off for {prefix.tower.label}: {reason}.")
        elif self.verbose and self._module is not None:
            self._module.print(f"Frozen prefix cache: not used for {prefix.tower.label}: {reason}.")

    def __getstate__(self) -> dict[str, Any]:
        # A copy or a pickle of a callback is its configuration, never the run that it takes part in.
        run: dict[str, Any] = dict.fromkeys(("_store", "_module", "_outside", "_accelerator", "_fitted", "_cached"))
        run |= {"_floors": {}}
        return {k: v for k, v in vars(self).items() if k != "log"} | run


def _open_store(cache_dir: Path | None, max_memory: str | int | None, max_disk: str | int | None) -> Any:
    from lightning_freeze.cache.store.store import open_store

    new_hash()  # says before the first batch what is not installed
    return open_store(cache_dir, max_memory, max_disk)
