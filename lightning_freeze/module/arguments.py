"""Checks of constructor arguments in Python, as strict as the command line's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, get_args

from torch.optim import Optimizer

from lightning_freeze.errors import ConfigurationError, listing, suggest


def check_choice(name: str, value: object, literal: Any, optional: bool = False) -> None:
    """Check that a value is one of the choices of a ``Literal``.

    Args:
        name: The argument, for the message.
        value: What was given.
        literal: The ``Literal`` type.
        optional: Whether None is allowed too.

    Raises:
        ConfigurationError: It is none of them.
    """
    choices = get_args(literal)
    if (value is None and optional) or (isinstance(value, str) and value in choices):
        return
    raise ConfigurationError(
        f"{name} is {value!r}: expected {'None or ' if optional else ''}one of {listing(choices)}."
        f"{suggest(value, choices)}"
    )


def check_bool(name: str, value: object) -> None:
    """Check that a value is True or False. Other objects have a truth value too: ``"False"`` would count as true.

    Args:
        name: The argument, for the message.
        value: What was given.

    Raises:
        ConfigurationError: It is neither.
    """
    if not isinstance(value, bool):
        nearest = {"true": " Did you mean True?", "false": " Did you mean False?"}.get(str(value).lower(), "")
        raise ConfigurationError(f"{name} is {value!r}: expected True or False.{nearest}")


def check_count(name: str, value: object, least: int = 1, optional: bool = False) -> None:
    """Check that a value is a whole number.

    Args:
        name: The argument, for the message.
        value: What was given.
        least: The smallest number allowed.
        optional: Whether None is allowed too.

    Raises:
        ConfigurationError: It is not a whole number, or too small.
    """
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ConfigurationError(f"{name} is {value!r}: expected a whole number{' or None' if optional else ''}.")
    if value < least:
        raise ConfigurationError(f"{name} is {value}: expected at least {least}.")


def check_share(name: str, value: object) -> None:
    """Check that a value is a share of at least 0 and below 1.

    Args:
        name: The argument, for the message.
        value: What was given.

    Raises:
        ConfigurationError: It is not a number, or out of range.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) < 1:
        raise ConfigurationError(f"{name} is {value!r}: expected a share of at least 0 and below 1.")


def check_names(name: str, value: object) -> None:
    """Check that a value is a list of different names, or None.

    Args:
        name: The argument, for the message.
        value: What was given.

    Raises:
        ConfigurationError: It is a string, holds something else than strings, or holds a name twice.
    """
    if value is None:
        return
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ConfigurationError(f"{name} is {value!r}: expected a list of names, for example ['neg', 'pos'].")
    for item in value:
        if not isinstance(item, str):
            raise ConfigurationError(f"{name} holds {item!r}: expected names as strings, for example {str(item)!r}.")
    if not value:
        raise ConfigurationError(f"{name} is empty: expected a name for each class, or None.")
    twice = sorted({item for item in value if value.count(item) > 1})
    if twice:
        raise ConfigurationError(f"{name} holds {twice[0]!r} twice: expected a different name for each class.")


def check_factory(name: str, value: object, example: str) -> None:
    """Check that a value can be called to build something, and is not the built thing itself.

    Args:
        name: The argument, for the message.
        value: What was given.
        example: A right value, for the message.

    Raises:
        ConfigurationError: It cannot be called.
    """
    if isinstance(value, Optimizer) or not callable(value):
        raise ConfigurationError(
            f"{name} is {_kind(value)}: expected a class or function that builds one, for example {example}."
        )


def check_mapping(name: str, value: object) -> None:
    """Check that a value is a dict whose keys are strings, or None.

    Args:
        name: The argument, for the message.
        value: What was given.

    Raises:
        ConfigurationError: It is something else.
    """
    if value is not None and not (isinstance(value, Mapping) and all(isinstance(key, str) for key in value)):
        raise ConfigurationError(f"{name} is {value!r}: expected a dict of keyword arguments.")


def check_unused(reason: str, arguments: Iterable[tuple[str, object, object]]) -> None:
    """Refuse arguments that would have no effect.

    Args:
        reason: Why they have none.
        arguments: Name, value and default of each.

    Raises:
        ConfigurationError: One differs from its default.
    """
    for name, value, default in arguments:
        if value != default:
            raise ConfigurationError(f"{name}={value!r} has no effect: {reason}. Leave it out.")


def _kind(value: object) -> str:
    return repr(value) if isinstance(value, (str, int, float)) else f"a {type(value).__name__}"
