"""Checks of what annotations cannot say: ranges, and arguments that have no effect."""

from __future__ import annotations

from collections.abc import Iterable

from lightning_freeze.errors import ConfigurationError


def check_at_least(name: str, value: float | None, least: int) -> None:
    """Check that a number is not too small.

    Args:
        name: The argument, for the message.
        value: The number; None stands for a default.
        least: The smallest number allowed.

    Raises:
        ConfigurationError: It is smaller.
    """
    if value is not None and not value >= least:
        raise ConfigurationError(f"{name} is {value}: expected at least {least}.")


def check_share(name: str, value: float) -> None:
    """Check that a number is a share of at least 0 and below 1.

    Args:
        name: The argument, for the message.
        value: The number.

    Raises:
        ConfigurationError: It is out of range, or NaN.
    """
    if not 0 <= value < 1:
        raise ConfigurationError(f"{name} is {value}: expected a share of at least 0 and below 1.")


def check_distinct(name: str, values: Iterable[str] | None) -> None:
    """Check that there are names, and none of them twice.

    Args:
        name: The argument, for the message.
        values: The names, or None.

    Raises:
        ConfigurationError: A name occurs twice, or there is none.
    """
    if values is None:
        return
    names = list(values)
    if not names:
        raise ConfigurationError(f"{name} is empty: expected a name for each class, or None.")
    doubled = next((item for item in names if names.count(item) > 1), None)
    if doubled is not None:
        raise ConfigurationError(f"{name} holds {doubled!r} twice: expected a different name for each class.")


def check_unused(reason: str, arguments: Iterable[tuple[str, object, object]]) -> None:
    """Refuse arguments that would have no effect, where that depends on more than other arguments.

    Args:
        reason: Why they have none.
        arguments: Name, value and default of each.

    Raises:
        ConfigurationError: One differs from its default.
    """
    for name, value, default in arguments:
        if value != default:
            raise ConfigurationError(f"{name}={value!r} has no effect: {reason}. Leave it out.")
