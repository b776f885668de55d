"""Seeded splits of one table into training, validation and test rows."""

from __future__ import annotations

import math
import random
from collections.abc import Hashable, Sequence

NAMES = ("train", "val", "test")


def check_fractions(fractions: Sequence[float]) -> None:
    """Check split fractions.

    Args:
        fractions: Shares of training, validation and test rows.

    Raises:
        ValueError: There are not three, one is negative or not a number, or they sum to more than 1.
    """
    if len(fractions) != len(NAMES):
        raise ValueError(f"split has {len(fractions)} fractions {tuple(fractions)}: expected three (train, val, test).")
    for name, fraction in zip(NAMES, fractions, strict=True):
        if not math.isfinite(fraction) or fraction < 0:
            raise ValueError(f"split gives {name} the fraction {fraction}: expected a number from 0 to 1.")
    if sum(fractions) > 1 + 1e-9:
        raise ValueError(f"split {tuple(fractions)} sums to {sum(fractions):g}: expected at most 1.")
    if fractions[0] == 0:
        raise ValueError(f"split {tuple(fractions)} leaves no training rows: expected a first fraction above 0.")


def split_rows(
    count: int, fractions: Sequence[float], seed: int, groups: Sequence[Hashable] | None = None
) -> tuple[list[int], list[int], list[int]]:
    """Split row numbers into training, validation and test.

    The groups (or single rows) are shuffled with the seed and laid end to end; each goes to the split whose range
    contains its middle. A group is never divided, so the shares are exact up to the size of a group. Rows beyond the
    fractions are not used. The same rows, fractions and seed give the same split on every machine.

    Args:
        count: Number of rows.
        fractions: Shares of training, validation and test rows, summing to at most 1.
        seed: Seed of the shuffle.
        groups: For each row, the group that must not be divided, for example the author; None for none.

    Returns:
        Sorted row numbers of the three splits.

    Raises:
        ValueError: The fractions are wrong, or a split with a fraction above 0 would be empty.
    """
    check_fractions(fractions)
    members: dict[Hashable, list[int]] = {}
    for row in range(count):
        members.setdefault(groups[row] if groups is not None else row, []).append(row)
    order = list(members)
    random.Random(seed).shuffle(order)
    ends = [sum(fractions[: i + 1]) * count for i in range(len(fractions))]
    splits: tuple[list[int], list[int], list[int]] = ([], [], [])
    position = 0
    for group in order:
        middle = position + len(members[group]) / 2
        position += len(members[group])
        for split, end in zip(splits, ends, strict=True):
            if middle <= end + 1e-9:
                split.extend(members[group])
                break
    for name, fraction, split in zip(NAMES, fractions, splits, strict=True):
        if fraction > 0 and not split:
            unit = f"{len(members)} groups" if groups is not None else f"{count} rows"
            raise ValueError(
                f"split {tuple(fractions)} of {unit} leaves {name} empty: expected more rows or another fraction than "
                f"{fraction:g} (0 for none)."
            )
        split.sort()
    return splits
