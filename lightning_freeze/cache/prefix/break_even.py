"""Whether reading hidden states pays, from the times that reading and computing them take."""

from __future__ import annotations

import time

import torch

from lightning_freeze.cache.identity.keys import KeysOf
from lightning_freeze.cache.prefix import layout
from lightning_freeze.cache.prefix.pass_state import KnownPrefix, PassState, Store

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


def time_reading(store: Store, state: PassState, known: KnownPrefix, keys_of: KeysOf) -> None:
    """Measure how long reading a batch takes, and whether any of it is stored.

    Args:
        store: The store.
        state: The pass.
        known: What is known about the prefix; updated.
        keys_of: As for :meth:`Call.keys`.
    """
    times = []
    for _ in range(3):
        began = time.perf_counter()
        keys = state.find_keys(keys_of)
        rows = [row for row in store.get(state.namespace, keys) if row is not None]
        known.has_room = bool(rows)
        if len(rows) < state.call.size:
            break
        layout.lay_out(rows, state.spans, state.call.length, known.dtype, known.device)
        synchronize(known.device)
        times.append(time.perf_counter() - began)
    known.read_seconds = min(times, default=0.0) / state.call.size


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished, so that times are true."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
