"""Splits are seeded, complete and never divide a group."""

from __future__ import annotations

import pytest

from lightning_freeze.data.splitting import split_rows


def test_every_row_stands_in_one_split_of_the_asked_size() -> None:
    parts = split_rows(100, (0.8, 0.1, 0.1), seed=3)
    assert sorted([*parts[0], *parts[1], *parts[2]]) == list(range(100))
    assert [len(part) for part in parts] == [80, 10, 10]


def test_fractions_below_one_leave_rows_out() -> None:
    assert [len(part) for part in split_rows(100, (0.5, 0.2, 0.0), seed=0)] == [50, 20, 0]


def test_same_seed_same_split_and_another_seed_another() -> None:
    first = split_rows(50, (0.5, 0.25, 0.25), seed=1)
    assert first == split_rows(50, (0.5, 0.25, 0.25), seed=1)
    assert first != split_rows(50, (0.5, 0.25, 0.25), seed=2)


def test_the_split_of_a_seed_never_changes() -> None:
    # Published results depend on it: a change here is a breaking change.
    assert split_rows(10, (0.6, 0.2, 0.2), seed=0) == ([1, 3, 4, 5, 7, 8], [0, 2], [6, 9])


def test_no_group_is_divided() -> None:
    groups = [f"g{row % 17}" for row in range(200)]
    parts = split_rows(200, (0.6, 0.2, 0.2), seed=5, groups=groups)
    seen = [{groups[row] for row in part} for part in parts]
    assert not seen[0] & seen[1] and not seen[0] & seen[2] and not seen[1] & seen[2]
    assert len(parts[0]) == pytest.approx(120, abs=12)


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        ((0.9, 0.2, 0.1), r"sums to 1\.2: expected at most 1"),
        ((0.9, -0.1, 0.1), r"gives val the fraction -0\.1"),
        ((0.9, float("nan"), 0.1), r"gives val the fraction nan"),
        ((0.0, 0.5, 0.5), "no training rows"),
        ((0.9, 0.1), "2 fractions"),
    ],
)
def test_wrong_fractions(fractions: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split_rows(100, fractions, seed=0)


def test_an_empty_split_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"3 rows leaves test empty"):
        split_rows(3, (0.8, 0.19, 0.01), seed=0)
    with pytest.raises(ValueError, match=r"1 groups leaves train empty|1 groups leaves val empty"):
        split_rows(30, (0.8, 0.1, 0.1), seed=0, groups=["one"] * 30)
