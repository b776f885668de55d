"""What a single field means."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from lightning_freeze.data.reading.values import (
    class_name,
    group_name,
    is_empty,
    is_missing,
    number,
    on_off,
    text_value,
)


@pytest.mark.parametrize("value", ["1", "1.0", "1.00", 1, 1.0, Decimal("1.0"), b"1", " 1\u200b", "\ufeff1", "1\u00ad"])
def test_one_class_whatever_its_spelling(value: Any) -> None:
    assert class_name(value) == "1"


@pytest.mark.parametrize("value", ["01", "1.5", "v1.0", "1e0", "1.0.0", "\u0661"])
def test_other_spellings_stay(value: str) -> None:
    assert class_name(value) == value


def test_negative_zero_and_unicode_forms() -> None:
    assert class_name(-0.0) == class_name("-0") == "0"
    assert class_name("cafe\u0301") == class_name("caf\u00e9") == "caf\u00e9"


@pytest.mark.parametrize("value", [["a"], {"a": 1}, b"\xff", "a\ud800", object()])
def test_what_is_no_class(value: Any) -> None:
    with pytest.raises(ValueError, match=r"expected|not UTF-8"):
        class_name(value)


def test_groups_take_any_value() -> None:
    assert group_name(1.0) == group_name("1") == "1"
    assert group_name(["a"]) == "['a']"


@pytest.mark.parametrize("value", ["1_000", "1e39", 1e39, 10**400, True, "", b"\xff", [1.0], {}, None, float("inf")])
def test_what_is_no_number(value: Any) -> None:
    with pytest.raises(ValueError, match=r"expected a finite number|not UTF-8"):
        number(value)


def test_numbers() -> None:
    assert [number(value) for value in (" 1.5 ", b"2", Decimal("3"), 4, -3e38)] == [1.5, 2.0, 3.0, 4.0, -3e38]


def test_flags() -> None:
    assert [on_off(value) for value in ("1.0", 1.0, True, "TRUE", b"1", "0.0", False)] == [1, 1, 1, 1, 1, 0, 0]


def test_an_item_is_named_by_its_place() -> None:
    with pytest.raises(ValueError, match=r"whose item 2 is None, expected text"):
        text_value(["a", None])


def test_a_huge_value_is_shown_short() -> None:
    with pytest.raises(ValueError) as error:
        text_value({str(i): "x" * 1000 for i in range(100)})
    assert len(str(error.value)) < 100


def test_a_text_of_white_space_is_read_in_linear_time() -> None:
    assert not is_missing(f"a{' ' * 2_000_000}b") and is_missing(" \u200b" * 1_000_000)


def test_all_white_space_is_invisible() -> None:
    assert all(is_missing(chr(code)) for code in range(0x3001) if chr(code).isspace())


def test_invisible_text_is_missing() -> None:
    assert all(map(is_missing, [None, float("nan"), "", " \t", "\u200b\u2060", "\ufeff", b" "]))
    assert not any(map(is_missing, [0, False, "0", "\u0301a"]))
    assert is_empty(["", " "]) and is_empty([]) and not is_empty(["", ""], words=True)
