"""Hidden states of single samples, without padding, and their layout in a batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Spans = Sequence[tuple[int, int]]


def pack(hidden: Tensor, spans: Spans | None, dtype: torch.dtype | None = None) -> list[Tensor]:
    """Cut a batch of hidden states into samples.

    Args:
        hidden: ``(batch, ...)``, with ``spans`` ``(batch, positions, ...)``.
        spans: For each sample the first position that is no padding and the one behind the last; ``None`` keeps all.
        dtype: What to store them in; ``None`` keeps what was computed, bit for bit.

    Returns:
        One CPU tensor for each sample.
    """
    return cut(hidden.detach().to("cpu", dtype or hidden.dtype), spans)


def cut(hidden: Tensor, spans: Spans | None) -> list[Tensor]:
    """Return views of the samples of a batch, without padding where ``spans`` say what that is."""
    if spans is None:
        return list(hidden.unbind(0))
    return [row[start:stop] for row, (start, stop) in zip(hidden.unbind(0), spans, strict=True)]


def fits(row: Tensor, span: tuple[int, int] | None, shape: torch.Size, dtype: torch.dtype) -> bool:
    """Whether a stored sample can stand in a batch of hidden states of this shape.

    Args:
        row: What was stored.
        span: Where it goes, ``None`` for all positions.
        shape: Shape of one sample in the batch.
        dtype: What it should have been stored in.
    """
    expected = (span[1] - span[0], *shape[1:]) if span else tuple(shape)
    return tuple(row.shape) == expected and row.dtype == dtype


def order_of(hidden: Tensor) -> tuple[int, ...]:
    """The dimensions of a tensor from the outermost to the innermost in memory; empty if they stand in that order.

    Kernels differ by it (channels last, for instance), and so do the last bits of what they compute.
    """
    strides = hidden.stride()
    order = tuple(sorted(range(hidden.dim()), key=lambda d: (-strides[d], d)))
    return () if hidden.is_contiguous() or order == tuple(range(hidden.dim())) else order


def lay_out(
    rows: Sequence[Tensor],
    spans: Spans | None,
    length: int,
    dtype: torch.dtype,
    device: torch.device,
    order: Sequence[int] = (),
) -> Tensor:
    """Put samples into one batch; the positions of padding are zero.

    Args:
        rows: What :func:`pack` gave for each sample, on the CPU or the device.
        spans: Where each of them goes, ``None`` if they fill all positions.
        length: Number of positions in the batch.
        dtype: What the batch is computed in.
        device: Where it is computed.
        order: Its dimensions in memory, from :func:`order_of`.

    Returns:
        ``(batch, length, ...)`` with spans, ``(batch, ...)`` without.
    """
    there = all(row.device == device for row in rows)
    pinned = device.type == "cuda" and not there
    full = spans is None or all(stop - start == length for start, stop in spans)
    shape = (len(rows), *rows[0].shape) if full else (len(rows), length, *rows[0].shape[1:])
    make = torch.empty if full else torch.zeros
    if order:
        inverse = [list(order).index(d) for d in range(len(shape))]
        shape = tuple(shape[d] for d in order)
    batch = make(shape, dtype=dtype, pin_memory=pinned, device=device if there else "cpu")
    if order:
        batch = batch.permute(inverse)
    for number, row in enumerate(rows):
        if full or spans is None:
            batch[number].copy_(row)
        else:
            batch[number, spans[number][0] : spans[number][1]].copy_(row)
    return batch.to(device, non_blocking=True) if pinned else batch.to(device)
