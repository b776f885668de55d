"""Whether reading hidden states pays, from the times that reading and computing them take."""

from __future__ import annotations

from lightning_freeze.cache.prefix.pass_state import KnownPrefix

#: Reading may take this many times as long as computing before the cache stops being used.
SLOWER = 1.0
#: Number of batches that are read before the decision is made again.
READS = 8
#: Reading a batch in less than this many seconds always counts as fast enough.
NEGLIGIBLE_SECONDS = 0.005


def is_slow(known: KnownPrefix, size: int, seconds: float) -> bool:
    """Whether reading a batch takes longer than an alternative.

    Args:
        known: The prefix.
        size: Number of samples in the batch.
        seconds: What the alternative takes.
    """
    return known.read_seconds * size > SLOWER * seconds


def why_slow(known: KnownPrefix) -> str | None:
    """Why reading does not pay, ``None`` if it does."""
    # Compared with the first batch, which takes longest: where that matters, the model is so small that little is lost.
    if not is_slow(known, 1, known.first_compute_seconds):
        return None
    return (
        f"reading the hidden states of a sample takes {1e3 * known.read_seconds:.2g} ms, computing them "
        f"{1e3 * known.first_compute_seconds:.2g} ms"
    )


def why_slow_after_reads(known: KnownPrefix, seconds: float, size: int) -> str | None:
    """Why reading does not pay, measured on the first batches that were read; ``None`` if it does.

    The first measurement alone is not enough: it may have read from memory what later comes from disk.

    Args:
        known: The prefix.
        seconds: Time that reading a batch has just taken.
        size: Number of samples in it.
    """
    known.read_times.append(seconds / size)
    if len(known.read_times) != READS or min(known.read_times) * size < NEGLIGIBLE_SECONDS:
        return None
    known.read_seconds = min(known.read_times)
    return why_slow(known)
