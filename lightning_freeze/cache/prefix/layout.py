"""Conversion between a batch of hidden states and single samples without padding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Spans = Sequence[tuple[int, int]]


def pack(hidden: Tensor, spans: Spans | None, dtype: torch.dtype | None = None) -> list[Tensor]:
    """Cut a batch of hidden states into samples.

    Args:
        hidden: ``(batch, ...)``, with ``spans`` ``(batch, positions, ...)``.
        spans: For each sample the first position that is not padding and the one after the last; ``None`` keeps all.
        dtype: The dtype to store; ``None`` keeps what was computed, bit for bit.

    Returns:
        One CPU tensor for each sample.
    """
    return cut(hidden.detach().to("cpu", dtype or hidden.dtype), spans)


def cut(hidden: Tensor, spans: Spans | None) -> list[Tensor]:
    """Return views of the samples of a batch, without padding if ``spans`` are given."""
    if spans is None:
        return list(hidden.unbind(0))
    return [row[start:stop] for row, (start, stop) in zip(hidden.unbind(0), spans, strict=True)]


def fits(row: Tensor, span: tuple[int, int] | None, shape: torch.Size, dtype: torch.dtype) -> bool:
    """Whether a stored sample fits into a batch of hidden states.

    Args:
        row: What was stored.
        span: The positions that it takes, ``None`` for all.
        shape: Shape of one sample in the batch.
        dtype: The dtype that it should have.
    """
    expected = (span[1] - span[0], *shape[1:]) if span else tuple(shape)
    return tuple(row.shape) == expected and row.dtype == dtype


def matching(
    rows: Sequence[Tensor | None], spans: Spans | None, shape: tuple[int, ...] | None, dtype: torch.dtype
) -> list[Tensor | None]:
    """Return stored samples, with ``None`` in place of those that do not fit the batch.

    Args:
        rows: What was stored, one entry for each sample.
        spans: The positions that each sample takes, ``None`` for all.
        shape: Shape of one sample in the batch; ``None`` if it is that of the first one.
        dtype: The dtype that they should have.
    """
    found: list[Tensor | None] = []
    for number, row in enumerate(rows):
        span = spans[number] if spans else None
        expected = torch.Size(shape) if shape else row.shape if row is not None else torch.Size()
        found.append(row if row is not None and fits(row, span, expected, dtype) else None)
    first = next((row for row in found if row is not None), None)
    if spans is None and first is not None:
        found = [row if row is not None and row.shape == first.shape else None for row in found]
    return found


def order_of(hidden: Tensor) -> tuple[int, ...]:
    """Return the dimensions of a tensor from outermost to innermost in memory; empty if they are in order.

    Kernels depend on this order (channels last, for instance), and so do the last bits of their results.
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
    """Put samples into one batch, with zeros in the positions of padding.

    Args:
        rows: The samples as :func:`pack` returned them, on the CPU or the device.
        spans: The positions that each sample takes, ``None`` for all.
        length: Number of positions in the batch.
        dtype: The dtype of the batch.
        device: The device of the batch.
        order: Order of its dimensions in memory, from :func:`order_of`.

    Returns:
        ``(batch, length, ...)`` with spans, ``(batch, ...)`` without.
    """
    devices = {row.device for row in rows}
    is_on_device = devices == {device}
    pinned = device.type == "cuda" and not is_on_device
    is_full = spans is None or all(stop - start == length for start, stop in spans)
    shape = (len(rows), *rows[0].shape) if is_full else (len(rows), length, *rows[0].shape[1:])
    make = torch.empty if is_full else torch.zeros
    if order:
        inverse = [list(order).index(d) for d in range(len(shape))]
        shape = tuple(shape[d] for d in order)
    batch = make(shape, dtype=dtype, pin_memory=pinned, device=device if is_on_device else "cpu")
    if order:
        batch = batch.permute(inverse)
    if is_full and devices == {batch.device} and {row.dtype for row in rows} == {dtype}:
        torch.stack(list(rows), out=batch)  # one operation rather than one for each sample
        rows = ()
    for number, row in enumerate(rows):
        if is_full or spans is None:
            batch[number].copy_(row)
        else:
            batch[number, spans[number][0] : spans[number][1]].copy_(row)
    return batch.to(device, non_blocking=pinned)
