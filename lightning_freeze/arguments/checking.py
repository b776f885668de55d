"""The check that constructors of public classes begin with."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Collection, Mapping
from typing import Any

from lightning_freeze.arguments.annotations import choices_of, described, fits, reading_of
from lightning_freeze.errors import ConfigurationError, suggest

_LONGEST = 80


def check_arguments(
    cls: type,
    values: Mapping[str, Any],
    needs: Mapping[str, str] | None = None,
    excludes: Mapping[str, str] | None = None,
    own: Collection[str] = (),
) -> None:
    """Check the arguments of a constructor against its annotations.

    Args:
        cls: The class that the constructor belongs to.
        values: The arguments by name: ``locals()`` on the first line of the constructor. Other names are passed over.
        needs: Arguments that have no effect unless another one is given: ``{"monitor": "restore_best"}``.
        excludes: Arguments that have no effect if another one is given: ``{"warmup_ratio": "lr_scheduler"}``.
        own: Arguments that the class checks itself, because it can say more about a wrong value.

    Raises:
        ConfigurationError: If a value is not what its annotation says, or has no effect.

    Examples:
        >>> class Pause:
        ...     def __init__(self, steps: int = 1) -> None:
        ...         check_arguments(Pause, locals())
        >>> Pause(steps="3")
        Traceback (most recent call last):
        lightning_freeze.errors.ConfigurationError: Pause(steps='3'): expected a whole number.
    """
    for name, annotation in _annotations(cls).items():
        value = values.get(name)
        if name in values and name not in own and not fits(value, annotation):
            raise ConfigurationError(
                f"{_call(cls, name, value)}: expected {described(annotation)}.{_nearest(value, annotation)}"
            )
    for name, other in (needs or {}).items():
        if _is_given(cls, name, values) and not values[other]:
            raise ConfigurationError(
                f"{_call(cls, name, values[name])} has no effect without {other}: expected both, or neither."
            )
    for name, other in (excludes or {}).items():
        if _is_given(cls, name, values) and values[other] is not None:
            raise ConfigurationError(
                f"{_call(cls, name, values[name])} has no effect beside {other}: expected one of the two."
            )


@functools.cache
def _annotations(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls.__init__)  # type: ignore[misc]
    return {name: hint for name, hint in hints.items() if name != "return"}


@functools.cache
def _defaults(cls: type) -> dict[str, Any]:
    return {name: parameter.default for name, parameter in inspect.signature(cls).parameters.items()}


def _is_given(cls: type, name: str, values: Mapping[str, Any]) -> bool:
    """Whether an argument differs from its default: one that was given with that value changes nothing."""
    value = values[name]
    return bool((tuple(value) if isinstance(value, list) else value) != _defaults(cls)[name])


def _nearest(value: Any, annotation: Any) -> str:
    if not isinstance(value, str):
        return ""
    reading = reading_of(value, annotation)
    return suggest(value, choices_of(annotation)) if reading is None else f" Did you mean {reading!r}?"


def _call(cls: type, name: str, value: Any) -> str:
    shown = " ".join(repr(value).split())
    return f"{cls.__name__}({name}={shown if len(shown) <= _LONGEST else shown[: _LONGEST - 3] + '...'})"
