"""Fills a FrozenPrefixCache ahead: starts a fit, and takes over after the backward pass of its first step."""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule, Trainer

from lightning_freeze.cache.filling import CacheFilling, boundaries_to_fill
from lightning_freeze.cache.frozen_prefix import FrozenPrefix
from lightning_freeze.cache.messages import samples_in_epoch
from lightning_freeze.cache.store.sizes import parse_size, show_size
from lightning_freeze.callbacks.frozen_prefix_cache import FrozenPrefixCache
from lightning_freeze.callbacks.phased_fine_tuning import PhasedFineTuning
from lightning_freeze.errors import ConfigurationError
from lightning_freeze.namespaces import Callback

#: Bytes after which everything is written, so that not more is lost if the process is stopped.
_FLUSH_AFTER = 64 * 2**20


class Filled(NamedTuple):
    """What was filled.

    Attributes:
        samples: Samples of all processes, counted at each tower.
        computed: Samples among them that were not stored before.
        bytes: Bytes that the folder holds for these prefixes.
        folder: The folder.
        boundaries: The boundaries of each tower, by its name.
    """

    samples: int
    computed: int
    bytes: int
    folder: Path
    boundaries: dict[str, list[int]]

    def __str__(self) -> str:
        counts = "; ".join(
            f"{f'{name}: ' if name else ''}{', '.join(map(str, found))}" for name, found in self.boundaries.items()
        )
        already = f" ({self.samples - self.computed:,} were stored already)" if self.computed < self.samples else ""
        return (
            f"Filled: {self.samples:,} samples{already}, {show_size(self.bytes)}, in {self.folder}; frozen blocks: "
            f"{counts}"
        )


class FillComplete(Exception):
    """The cache is filled, and the fit ends without a step of the optimizer."""


class CacheFillingCallback(Callback):
    """Stores the hidden states of all training and validation samples, for every boundary of the schedule.

    The first step runs up to its backward pass, so that the cache checks itself as in every fit. Then each batch of
    the first epoch, and each validation batch, runs up to its boundary only, in inference mode.

    The batches are those of the fit. Larger ones would be faster where they do not fill the device, but kernels may
    round the same sample otherwise in another batch, and the fit would not be bit for bit the one without the cache.

    Args:
        progress: Called with the number of samples that are done, and the number expected; ``None`` to show nothing.

    Attributes:
        filled: What was done, ``None`` before the end.
    """

    def __init__(self, progress: Callable[[int, int], None] | None = None) -> None:
        self.filled: Filled | None = None
        self._progress = progress
        self._calls_before: dict[FrozenPrefix, int] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: D102
        check_cache(trainer)

    def on_train_batch_start(  # noqa: D102
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # Other callbacks may have called the towers before the first step.
        self._calls_before = {prefix: prefix.calls for prefix in check_cache(trainer)._towers}

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        self._fill(trainer, pl_module)

    def on_train_batch_end(  # noqa: D102
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._fill(trainer, pl_module)  # a step without a backward pass

    def _fill(self, trainer: Trainer, module: LightningModule) -> None:
        cache = check_cache(trainer)
        prefixes = _ready(cache)
        schedules = [c for c in trainer.callbacks if isinstance(c, PhasedFineTuning)]  # type: ignore[attr-defined]
        for prefix in prefixes:
            freezes = [schedule.frozen_ahead() for schedule in schedules]
            # Frozen layers in train mode may be in eval mode in a later phase: only the present boundary is stored.
            ahead = boundaries_to_fill(freezes, prefix.tower) if _is_in_eval_mode(prefix) else []
            prefix.entries.boundaries_ahead = ahead
        storage = cache._attachment.storage
        assert storage is not None
        store = storage.store
        if store.folder is None:
            raise ConfigurationError(
                f"cache_dir {str(cache.cache_dir)!r} cannot be used, so nothing would be kept: expected a folder on a "
                f"local disk that can be written to."
            )
        expected = samples_in_epoch(trainer) + _validation_samples(trainer)
        # Each node has a folder of its own.
        _check_space(cache, prefixes, expected * max(1, trainer.world_size // trainer.num_nodes), store)
        filling = CacheFilling(prefixes, sum(p.calls - self._calls_before.get(p, 0) for p in prefixes))
        first = sum(prefix.batch_size for prefix in prefixes)  # has run as a whole

        def run(step: Callable[[], object]) -> None:
            filling.run(step)
            if filling.bytes_since_flush > _FLUSH_AFTER:
                store.flush()
                filling.bytes_since_flush = 0
            if self._progress is not None:
                self._progress(filling.samples // len(prefixes), expected)

        # A fit leaves out what the disk is too slow for; here nothing may be missing.
        with filling, store.waiting_for_disk(), torch.inference_mode():
            with trainer.precision_plugin.train_step_context():
                for number, batch in _rest_of_epoch(trainer, module):
                    run(_step(module.training_step, batch, number))
            filling.trims_padding = False  # nothing shows in a validation whether padding is read
            # Where frozen layers are in train mode, those of a validation are others, which no step has checked.
            if all(map(_is_in_eval_mode, prefixes)):
                with _evaluating(module), trainer.precision_plugin.val_step_context():
                    for loader, number, batch in _validation_batches(trainer, module):
                        run(_step(module.validation_step, batch, number, loader))
        store.flush()
        # All processes end together, and for the same reason.
        counts = (filling.samples + first, filling.computed + first, store.stats.dropped)
        samples, computed, dropped = _sums(trainer, counts)
        if dropped:
            raise ConfigurationError(
                f"{dropped:,} entries could not be written to {store.folder}; the fit will compute them. "
                "What was written stays, and another `cache fill` goes on from there."
            )
        boundaries = {p.tower.name: [p.boundary, *p.entries.boundaries_ahead] for p in prefixes}
        self.filled = Filled(samples, computed, store.stats.disk_bytes, store.folder, boundaries)
        raise FillComplete


def check_cache(trainer: Trainer) -> FrozenPrefixCache:
    """Return the cache of a trainer.

    Raises:
        ConfigurationError: If there is none, or it keeps nothing for later runs.
    """
    found = [c for c in trainer.callbacks if isinstance(c, FrozenPrefixCache)]  # type: ignore[attr-defined]
    if not found:
        raise ConfigurationError(
            "There is no FrozenPrefixCache among trainer.callbacks, so there is nothing to fill: expected "
            "FrozenPrefixCache(cache_dir=...)."
        )
    if found[0].cache_dir is None:
        raise ConfigurationError(
            "FrozenPrefixCache has no cache_dir, so what is filled would be lost with this process: expected "
            "FrozenPrefixCache(cache_dir=...)."
        )
    return found[0]


def _ready(cache: FrozenPrefixCache) -> list[FrozenPrefix]:
    """Return the towers whose prefix was checked in the first step.

    Raises:
        ConfigurationError: If there is none.
    """
    found = [p for p in cache._towers if p.off is None and p.boundary and p.known is not None and p.known.is_checked]
    if not found:
        reasons = {name: decision.reason for name, decision in cache.explain().items()}
        why = "; ".join(f"{name}: {reason}" if name else reason for name, reason in reasons.items())
        raise ConfigurationError(f"The cache cannot be filled: {why or 'no tower was called in the first step'}.")
    if any(prefix.is_sharded for prefix in found):
        raise ConfigurationError(
            "The cache cannot be filled where each process holds a part of the weights: expected "
            "`--trainer.strategy auto` or `ddp`. A fit whose weights are sharded fills it in its first epoch."
        )
    return found


def _is_in_eval_mode(prefix: FrozenPrefix) -> bool:
    return not any(module.training for module in prefix.tower.prefix_modules(prefix.boundary))


def _check_space(cache: FrozenPrefixCache, prefixes: list[FrozenPrefix], samples: int, store: Any) -> None:
    """Refuse to begin what the disk has no room for."""
    each = sum(p.known.sample_bytes * (1 + len(p.entries.boundaries_ahead)) for p in prefixes if p.known is not None)
    need = max(0.0, each * samples - store.stats.disk_bytes)
    free, budget = shutil.disk_usage(store.folder).free, parse_size(cache.max_disk)
    room = free if budget is None else min(free, budget - store.stats.disk_bytes)
    if need > room:
        where = "max_disk leaves" if budget is not None and room < free else f"{store.folder} has"
        raise ConfigurationError(
            f"{samples:,} samples need about {show_size(need)}, and {where} {show_size(max(0, room))}. "
            "FrozenPrefixCache(dtype='bfloat16') takes half of the space of float32, and rounds."
        )


def _sums(trainer: Trainer, counts: Sequence[int]) -> list[int]:
    """Return the sums of counts over all processes."""
    own = torch.tensor(counts, device=trainer.strategy.root_device)
    total = trainer.strategy.reduce(own, reduce_op="sum")
    return [int(count) for count in total]


def _rest_of_epoch(trainer: Trainer, module: LightningModule) -> Iterator[tuple[int, Any]]:
    # Lightning's own iterator, which is not public: another one would shuffle the samples into other batches.
    fetcher = trainer.fit_loop._data_fetcher
    assert fetcher is not None
    for number in range(1, int(min(trainer.num_training_batches, 2**62))):
        try:
            batch, _, _ = next(fetcher)  # a `for` over it would begin again
        except StopIteration:
            return
        yield number, _on_device(trainer, module, batch, 0)


def _validation_batches(trainer: Trainer, module: LightningModule) -> Iterator[tuple[int, int, Any]]:
    for index, (loader, count) in enumerate(_validation_loaders(trainer)):
        for number, batch in enumerate(islice(loader, int(min(count, 2**62)))):
            yield index, number, _on_device(trainer, module, batch, index)


def _validation_loaders(trainer: Trainer) -> list[tuple[Any, float]]:
    loaders = trainer.val_dataloaders if trainer.enable_validation else None
    if loaders is None:
        return []
    each = list(loaders) if isinstance(loaders, (list, tuple)) else [loaders]
    return list(zip(each, trainer.num_val_batches, strict=False))


def _validation_samples(trainer: Trainer) -> int:
    counts = ((getattr(loader, "batch_size", None) or 1, count) for loader, count in _validation_loaders(trainer))
    return sum(int(size * count) for size, count in counts if count != float("inf"))


def _on_device(trainer: Trainer, module: LightningModule, batch: Any, loader: int) -> Any:
    batch = trainer.precision_plugin.convert_input(batch)
    # Not public, but the one place that finds the hook in the data module too.
    batch = module._on_before_batch_transfer(batch, dataloader_idx=loader)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=loader)


def _step(step: Callable[..., object], batch: Any, number: int, loader: int = 0) -> Callable[[], object]:
    """Return a step with the arguments that its signature asks for."""
    names = list(inspect.signature(step).parameters)
    if "dataloader_iter" in names:
        raise ConfigurationError("A step that takes `dataloader_iter` cannot be run ahead: expected one with `batch`.")
    given = [value for value, _ in zip((batch, number, loader), names, strict=False)]
    return lambda: step(*given)


@contextmanager
def _evaluating(module: LightningModule) -> Iterator[None]:
    modes = {each: each.training for each in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for each, mode in modes.items():
            each.training = mode
