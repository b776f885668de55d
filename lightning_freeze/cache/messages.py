"""What the cache reports: one line at the start, values during training, one line at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from lightning.pytorch import LightningModule, Trainer

from lightning_freeze.cache.frozen_prefix import FrozenPrefix
from lightning_freeze.cache.prefix.pass_state import KnownPrefix
from lightning_freeze.cache.prefix.predicted_gain import HeadFlops, Work
from lightning_freeze.cache.store.sizes import show_size

_PREFIX = "frozen_prefix_cache"


class Progress:
    """Logs the hit rate of the epoch, seconds saved and bytes stored.

    Logging takes longer than looking samples up. So values are logged only in steps in which they may reach a logger,
    and when the hit rate has changed, for the progress bar.
    """

    def __init__(self) -> None:
        self._before = (0, 0)
        self._rate: float | None = None

    def begin(self, prefixes: Sequence[FrozenPrefix]) -> None:
        """Begin an epoch.

        Args:
            prefixes: The towers.
        """
        self._before, self._rate = _count(prefixes), None

    def log(
        self,
        trainer: Trainer,
        module: LightningModule,
        prefixes: Sequence[FrozenPrefix],
        stored: Callable[[], int],
        shows: bool,
    ) -> None:
        """Log at the end of a training batch.

        Args:
            trainer: The running trainer.
            module: Its module.
            prefixes: The towers.
            stored: Returns the bytes that are stored.
            shows: Whether the progress bar shows the hit rate.
        """
        hits, samples = (now - before for now, before in zip(_count(prefixes), self._before, strict=True))
        rate = round(hits / samples, 2) if samples else None
        if rate is None or (rate == self._rate and not _reaches_loggers(trainer)):
            return
        self._rate = rate
        module.log_dict(
            {
                f"{_PREFIX}/seconds_saved": sum(prefix.tally.saved_seconds for prefix in prefixes),
                f"{_PREFIX}/bytes": float(stored()),
            },
            on_step=True,
            on_epoch=False,
            batch_size=1,
        )
        module.log(f"{_PREFIX}/hit_rate", hits / samples, prog_bar=shows, on_step=True, on_epoch=False, batch_size=1)


def _reaches_loggers(trainer: Trainer) -> bool:
    if len(trainer.optimizers) != 1 or trainer.accumulate_grad_batches != 1:
        return True  # Lightning's count of steps that are logged is not public
    every = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return bool(every) and trainer.global_step % every == 0


def _count(prefixes: Sequence[FrozenPrefix]) -> tuple[int, int]:
    return sum(p.tally.hits for p in prefixes), sum(p.tally.samples for p in prefixes)


class GainMessage:
    """Prints once how much faster the cache should make a step, after the first batch that was checked."""

    def __init__(self) -> None:
        self._is_told = False
        self._head: HeadFlops | None = None

    def start_batch(self, module: LightningModule, prefixes: Sequence[FrozenPrefix]) -> None:
        """Count the operations of a batch outside of the towers, unless the line was printed.

        Args:
            module: The module.
            prefixes: Its towers.
        """
        if self._is_told or self._head is not None:
            return
        if any(prefix.off is None and prefix.tower.boundary() for prefix in prefixes):
            self._head = HeadFlops(module, [prefix.tower.entry for prefix in prefixes])

    def end_batch(self, module: LightningModule, prefixes: Sequence[FrozenPrefix]) -> None:
        """Print the line if a prefix has been checked.

        Args:
            module: The module.
            prefixes: Its towers.
        """
        if self._head is None:
            return
        line = gain_line(prefixes, self._head.flops)
        self.close()
        if line:
            self._is_told = True
            module.print(line)

    def close(self) -> None:
        """Stop counting."""
        if self._head is not None:
            self._head.close()
            self._head = None


def gain_line(prefixes: Sequence[FrozenPrefix], head_flops: int) -> str:
    """Return what is computed once, and how much faster that should make a training step.

    Args:
        prefixes: The towers.
        head_flops: Floating point operations of a batch outside of the towers.

    Returns:
        One line, empty if no prefix has been checked yet.
    """
    used = [(p, p.known) for p in prefixes if p.off is None and p.known is not None and p.known.is_checked]
    if not used:
        return ""
    size = max(prefix.batch_size for prefix, _ in used)
    work = Work(size * sum(k.work.prefix for _, k in used), size * sum(k.work.rest for _, k in used) + head_flops)
    computing = size * sum(k.compute_seconds for _, k in used)
    reading = size * sum(k.read_seconds for _, k in used)
    if not any(known.has_room for _, known in used):
        need = show_size(size * sum(known.sample_bytes for _, known in used))
        return (
            f"Frozen prefix cache: there is no room for the hidden states of a batch ({need}), so nothing is gained; "
            f"raise max_memory or max_disk."
        )
    names = ", ".join(f"{p.boundary} of {len(p.tower.blocks)} blocks{_of(p.tower.name)}" for p, _ in used)
    stored = size * sum(k.sample_bytes for _, k in used)
    rate = work.prefix / computing if computing else 0.0
    return (
        f"Frozen prefix cache: {names} are computed once, {work.share:.0%} of the forward pass. Steps that read "
        f"them back should be {work.speedup(reading, rate):.1f} times as fast: {1e3 * reading:.2g} ms to read a batch "
        f"({show_size(stored / max(reading, 1e-9))}/s), {1e3 * computing:.2g} ms to compute it."
        f"{_only_same_batch(used)}"
    )


def _only_same_batch(used: Sequence[tuple[FrozenPrefix, KnownPrefix]]) -> str:
    found = [(p.tower.label, known.mixing) for p, known in used if known.mixing is not None]
    return "".join(
        f" In {label}, {mixing} computes across the samples of a batch, so they are read back only in the same batch."
        for label, mixing in found
    )


def frozen_parts_line(parts: Mapping[str, str]) -> str:
    """Return which wholly frozen parts are computed in each step, and why; empty if there are none.

    Args:
        parts: The reasons, by name.
    """
    reasons = {reason: [name for name in parts if parts[name] == reason] for reason in parts.values()}
    which = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in reasons.items())
    return f"Frozen prefix cache: frozen as a whole and computed in each step: {which}." if which else ""


def summary_line(prefixes: Sequence[FrozenPrefix], stored: int) -> str:
    """Return how many samples were read and how much time that saved.

    Args:
        prefixes: The towers.
        stored: Bytes that are stored.
    """
    samples = sum(p.tally.samples for p in prefixes)
    hits = sum(p.tally.hits for p in prefixes)
    saved = max(0.0, sum(p.tally.saved_seconds for p in prefixes))
    return (
        f"Frozen prefix cache: {hits} of {samples} samples read back ({hits / samples:.0%}), about {saved:.1f} s of "
        f"computing saved, {show_size(stored)} stored."
    )


def samples_in_epoch(trainer: Trainer) -> int:
    """Return about how many samples an epoch has on state rank."""
    loader = trainer.train_dataloader
    batches = trainer.num_training_batches
    size = getattr(loader, "batch_size", None) or 1
    return int(batches * size) if batches != float("inf") else 0


def _of(tower: str) -> str:
    return f" of the {tower}" if tower else ""
