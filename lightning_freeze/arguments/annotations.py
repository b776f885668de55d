"""Whether a value is what an annotation says, and the annotation in words."""

from __future__ import annotations

import ast
import collections.abc
import dataclasses
import numbers
import os
import types
import typing
from collections.abc import Iterable
from typing import Any, Literal, Union

import numpy as np

_WORDS = {bool: "True or False", int: "a whole number", float: "a number", str: "text", type(None): "None"}


def options_of(annotation: Any) -> list[Any]:
    """Return the alternatives of a union, or the annotation alone."""
    if typing.get_origin(annotation) in (Union, types.UnionType):
        return [option for part in typing.get_args(annotation) for option in options_of(part)]
    return [type(None) if annotation is None else annotation]


def choices_of(annotation: Any) -> list[Any]:
    """Return the values that the literals in an annotation allow."""
    literals = [option for option in options_of(annotation) if typing.get_origin(option) is Literal]
    return [choice for option in literals for choice in typing.get_args(option)]


def fits(value: Any, annotation: Any) -> bool:
    """Whether a value is what an annotation says.

    A whole number is a number, but a boolean is neither, and text is never a boolean. A path may stand for text,
    numbers of numpy for Python's, any ordered collection for a list. What this function does not know is let through.
    """
    return any(_fits(value, option) for option in options_of(annotation))


def reading_of(text: str, annotation: Any) -> object:
    """Return the boolean or number that a text spells, if an annotation allows it; else None.

    Args:
        text: What was given where the annotation allows no such text.
        annotation: The annotation.
    """
    try:
        value = ast.literal_eval(text.strip().capitalize())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return value if isinstance(value, int | float) and fits(value, annotation) else None


def described(annotation: Any) -> str:
    """Return an annotation in words, as in ``"a whole number or None"``."""
    words = dict.fromkeys(word for option in options_of(annotation) for word in _words(option))
    return " or ".join([word for word in words if word != "None"] + ["None"] * ("None" in words))


def _fits(value: Any, option: Any) -> bool:
    if option in (Any, object):
        return True
    if option in (int, float):
        kind = numbers.Integral if option is int else numbers.Real
        return isinstance(value, kind) and not isinstance(value, bool)
    if option is bool:
        return isinstance(value, bool | np.bool_)
    if option is str:
        return isinstance(value, str | os.PathLike)
    if typing.is_typeddict(option):
        return isinstance(value, collections.abc.Mapping)
    origin, arguments = typing.get_origin(option), typing.get_args(option)
    if origin is Literal:
        return any(choice == value and type(choice) is type(value) for choice in arguments)
    if not isinstance(origin, type):
        return not isinstance(option, type) or isinstance(value, option)
    if issubclass(origin, collections.abc.Callable):  # type: ignore[arg-type]
        return callable(value)
    if issubclass(origin, collections.abc.Mapping):
        return isinstance(value, collections.abc.Mapping) and _all_fit(value.items(), arguments)
    if issubclass(origin, collections.abc.Iterable):
        return _fits_collection(value, origin, arguments)
    return isinstance(value, origin)


def _fits_collection(value: Any, origin: type, arguments: tuple[Any, ...]) -> bool:
    is_collection = isinstance(value, collections.abc.Iterable) and hasattr(value, "__len__")
    if not is_collection or isinstance(value, str | bytes | collections.abc.Mapping | set | frozenset):
        return False
    items = list(value)
    if issubclass(origin, tuple) and arguments and arguments[-1] is not Ellipsis:
        return len(items) == len(arguments) and all(map(fits, items, arguments))
    return not arguments or all(fits(item, arguments[0]) for item in items)


def _all_fit(items: Iterable[tuple[Any, Any]], arguments: tuple[Any, ...]) -> bool:
    return len(arguments) != 2 or all(fits(key, arguments[0]) and fits(value, arguments[1]) for key, value in items)


def _words(option: Any) -> list[str]:
    if option in _WORDS:
        return [_WORDS[option]]
    origin, arguments = typing.get_origin(option), typing.get_args(option)
    if origin is Literal:
        return [repr(choice) for choice in arguments]
    if isinstance(origin, type) and issubclass(origin, collections.abc.Callable):  # type: ignore[arg-type]
        return ["a function or class"]
    if isinstance(origin, type) and issubclass(origin, collections.abc.Mapping):
        return ["a map" + (f" from {described(arguments[0])} to {described(arguments[1])}" if arguments else "")]
    if isinstance(origin, type) and issubclass(origin, collections.abc.Iterable):
        if issubclass(origin, tuple) and arguments and arguments[-1] is not Ellipsis:
            return [f"a list of {len(arguments)}, each {described(arguments[0])}"]
        return ["a list" + (f" with items that are {described(arguments[0])}" if arguments else "")]
    if typing.is_typeddict(option):
        return [f"a map with {', '.join(typing.get_type_hints(option))}"]
    name = getattr(option, "__name__", str(option))
    return [f"a {name}" if isinstance(option, type) and not dataclasses.is_dataclass(option) else name]
