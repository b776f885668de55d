"""What one field of a row means: text, words, a class, a number, or nothing. One rule for all kinds of files.

CSV files hold strings only; JSONL and Parquet files also hold numbers, booleans, bytes, lists and objects. Each
function here gives the same result for the same content, or raises a ``ValueError`` that says what was expected. The
caller adds the file, the row and the column.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any, TypeVar

import torch

_WHITE_SPACE = [*range(0x21), 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000]
_ZERO_WIDTH = [0xAD, 0x61C, 0x180E, *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2070), 0xFEFF]
_INVISIBLE = "".join(map(chr, _WHITE_SPACE + _ZERO_WIDTH))
_WHOLE_NUMBER = re.compile(r"(-?[0-9]+)\.0+")
_SURROGATE = re.compile("[\ud800-\udfff]")
_ON_OFF = {"1": 1.0, "0": 0.0, "true": 1.0, "false": 0.0}
_LARGEST = torch.finfo(torch.float32).max

_Item = TypeVar("_Item")


def trimmed(text: str) -> str:
    """Return a text without white space and invisible characters (zero-width spaces, byte order marks) at its ends.

    Args:
        text: Any text.
    """
    return text.strip(_INVISIBLE)


def is_missing(value: Any) -> bool:
    """Whether a field holds nothing: None, not-a-number, or text without a visible character.

    Args:
        value: The field.
    """
    if isinstance(value, (str, bytes)):
        return not trimmed(value if isinstance(value, str) else value.decode("utf-8", "replace"))
    return value is None or (isinstance(value, float) and math.isnan(value))


def is_empty(value: Any, words: bool = False) -> bool:
    """Whether a text field holds nothing: it is missing, an empty list, or a list of items that are all missing.

    Args:
        value: The field.
        words: Whether each item of a list is a word of its own, which gets a tag whatever it is.
    """
    if not isinstance(value, (list, tuple)):
        return is_missing(value)
    return not value or (not words and all(map(is_missing, value)))


def shown(value: Any, length: int = 60) -> str:
    """Return a value for a message, cut to a readable length.

    Args:
        value: Anything.
        length: The most characters to return.
    """
    text = repr(value[:length] if isinstance(value, (str, bytes, list, tuple)) else value)
    return text if len(text) <= length else text[: length - 3] + "..."


def text_value(value: Any) -> str:
    """Return the text of a field. Lists of words or sentences are joined with spaces, numbers are written out.

    Args:
        value: A string, UTF-8 bytes, a number, or a list of these with at least one string.

    Raises:
        ValueError: It is none of these, or cannot be encoded as UTF-8.
    """
    if isinstance(value, (list, tuple)):
        if not any(isinstance(item, (str, bytes)) for item in value):
            raise ValueError(f"is {shown(value)}, expected text, or a list of words")
        return " ".join(each(text_value, value))
    if isinstance(value, (str, bytes)):
        return _decoded(value)
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)) or not math.isfinite(value):
        raise ValueError(f"is {shown(value)}, expected text")
    return _spelled(value)


def word_list(value: Any) -> list[str]:
    """Return the words of a field.

    Args:
        value: A list of words.

    Raises:
        ValueError: It is no list, or an item is missing or no word.
    """
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"is {shown(value)}, expected a list of tokens (JSONL or Parquet)")
    return each(_word, value)


def class_name(value: Any) -> str:
    """Return the name of a class: the same for ``1``, ``1.0``, ``"1"`` and ``"1.0"``, and for all Unicode forms.

    Args:
        value: A string, UTF-8 bytes, a number or a boolean.

    Raises:
        ValueError: It is none of these.
    """
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, (int, float, Decimal)):
        value = _spelled(value)
    if not isinstance(value, (str, bytes)):
        raise ValueError(f"is {shown(value)}, expected the name or number of one class")
    name = trimmed(unicodedata.normalize("NFC", _decoded(value)))
    whole = _WHOLE_NUMBER.fullmatch(name)
    name = whole[1] if whole else name
    return "0" if name == "-0" else name


def group_name(value: Any) -> str:
    """Return the name of a group of rows: that of a class, or the spelling of anything else.

    Args:
        value: Any value.
    """
    try:
        return class_name(value)
    except ValueError:
        return str(value)


def number(value: Any) -> float:
    """Return the number of a field.

    Args:
        value: A number, or a string or UTF-8 bytes that spell one.

    Raises:
        ValueError: It is no number, or not finite in 32 bits.
    """
    problem = f"is {shown(value)}, expected a finite number"
    if isinstance(value, (str, bytes)):
        value = trimmed(_decoded(value))
    # float() accepts more than a number's usual spelling: True, and underscores between digits.
    if isinstance(value, bool) or not isinstance(value, (str, int, float, Decimal)) or "_" in str(value):
        raise ValueError(problem)
    try:
        result = float(value)
    except (ValueError, OverflowError):
        raise ValueError(problem) from None
    if not math.isfinite(result):
        raise ValueError(problem)
    if abs(result) > _LARGEST:
        raise ValueError(f"{problem} of at most {_LARGEST:.1e}, the largest of 32 bits")
    return result


def on_off(value: Any) -> float:
    """Return 1.0 or 0.0 for a field that says whether a label applies.

    Args:
        value: 0, 1, true or false, as a number, a boolean or text.

    Raises:
        ValueError: It is none of these.
    """
    try:
        return _ON_OFF[class_name(value).lower()]
    except (ValueError, KeyError):
        raise ValueError(f"is {shown(value)}, expected 0 or 1") from None


def each(convert: Callable[[Any], _Item], items: Sequence[Any]) -> list[_Item]:
    """Convert all items of a list.

    Args:
        convert: What to do with an item.
        items: The items.

    Raises:
        ValueError: An item cannot be converted; the message says which.
    """
    result = []
    for position, item in enumerate(items, start=1):
        try:
            result.append(convert(item))
        except ValueError as error:
            raise ValueError(f"is {shown(items)}, whose item {position} {error}") from None
    return result


def _word(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        raise ValueError(f"is {shown(value)}, expected one word")
    return text_value(value)


def _decoded(value: str | bytes) -> str:
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"is {shown(value)}, bytes that are not UTF-8 text") from None
    if not value.isascii() and (found := _SURROGATE.search(value)):
        raise ValueError(
            f"holds the lone surrogate {found[0]!r} (half of a character that was cut), expected valid Unicode text"
        )
    return value


def _spelled(value: int | float | Decimal) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    try:
        return str(value)
    except ValueError:  # Python refuses to spell integers of thousands of digits
        raise ValueError("is an integer of thousands of digits, expected text") from None
