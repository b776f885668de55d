"""Whether reading hidden states back is worth while, by the times that it and computing them take."""

from __future__ import annotations

from lightning_freeze.cache.prefix.pass_state import Known

#: Reading may take this many times as long as computing before it is given up.
SLOWER = 1.0
#: Batches that are read before it is seen again whether that is worth while.
READS = 8
#: Seconds of reading a batch that are not worth a thought.
LITTLE = 0.005


def is_slow(known: Known, size: int, seconds: float) -> bool:
    """Whether reading a batch takes longer than something else.

    Args:
        known: The prefix.
        size: Number of samples in the batch.
        seconds: What the other thing takes.
    """
    return known.reading * size > SLOWER * seconds


def why_not(known: Known) -> str | None:
    """Why reading is not worth while, ``None`` if it is."""
    # By the first batch, which takes longest: with models so small that it matters, there is little to lose.
    if not is_slow(known, 1, known.first):
        return None
    return (
        f"reading the hidden states of a sample takes {1e3 * known.reading:.2g} ms, computing them "
        f"{1e3 * known.first:.2g} ms"
    )


def why_not_after_all(known: Known, seconds: float, size: int) -> str | None:
    """Why reading is not worth while, once it has turned out so: the first one may come from memory.

    Args:
        known: The prefix.
        seconds: What reading a batch has just taken.
        size: Its number of samples.
    """
    known.reads.append(seconds / size)
    if len(known.reads) != READS or min(known.reads) * size < LITTLE:
        return None
    known.reading = min(known.reads)
    return why_not(known)
