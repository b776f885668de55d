"""Numbers in a config file where an argument is text: ``layers: 3`` and ``labels: [0, 1]`` mean what they look like.

Which arguments are text follows from the annotations of the classes that the config names.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import re
import types
import typing
from typing import Any, Union

import yaml
from lightning.pytorch import Trainer

from lightning_freeze.cli.parsing.known_classes import find_class
from lightning_freeze.data import TextDataModule
from lightning_freeze.module import TransformerModule

#: The classes whose arguments the sections of a config are.
SECTIONS: dict[str, type] = {"data": TextDataModule, "model": TransformerModule, "trainer": Trainer}
# What YAML 1.1 takes for a number to the base of 60. The parser would do so too where it expects a number.
_BASE_60 = re.compile(r"[-+]?\d[\d_]*(:[0-5]?\d)+(\.[\d_]*)?")


def numbers_as_text(config: Any) -> Any:
    """Return a config in which whole numbers are text wherever an argument is text and nothing else.

    Args:
        config: What was read from YAML: dicts, lists and scalars.

    Raises:
        yaml.YAMLError: If a boolean or a fraction stands where text is expected: quotes would have made it text.
    """
    if isinstance(config, list):
        return [numbers_as_text(item) for item in config]
    if not isinstance(config, dict):
        return config
    if "class_path" in config:
        return _class(config, find_class(config["class_path"]))
    result = {}
    for name, value in config.items():
        section = SECTIONS.get(name) if isinstance(name, str) else None
        if section is not None and isinstance(value, dict) and "class_path" not in value:
            value = _arguments(value, section)
        result[name] = numbers_as_text(value)
    return result


def check_option(name: str, value: str) -> None:
    """Check a value from the command line as if it stood in a config file.

    Args:
        name: The option, as in ``"data.batch_size"``.
        value: What was given.

    Raises:
        yaml.YAMLError: If a number to the base of 60 stands where a number is expected.
    """
    section, _, argument = name.partition(".")
    if section in SECTIONS and _BASE_60.fullmatch(value):
        _arguments({argument: value}, SECTIONS[section])


def _class(config: dict[Any, Any], cls: type | None) -> dict[Any, Any]:
    arguments = config.get("init_args")
    if cls is not None and isinstance(arguments, dict):
        arguments = _arguments(arguments, cls)
    # What else is in it has arguments of its own.
    return {name: numbers_as_text(arguments if name == "init_args" else value) for name, value in config.items()}


def _arguments(arguments: dict[Any, Any], cls: type) -> dict[Any, Any]:
    try:
        hints = typing.get_type_hints(cls if dataclasses.is_dataclass(cls) else cls.__init__)  # type: ignore[misc]
    except Exception:  # a class of another package, with annotations that cannot be resolved
        return arguments
    return {name: _adapted(value, hints.get(name, Any), str(name)) for name, value in arguments.items()}


def _adapted(value: Any, hint: Any, name: str) -> Any:
    """A value for an annotation; unchanged unless text is all that fits."""
    options = _options(hint)
    if isinstance(value, list):
        items = [option for option in options if _is_a(option, collections.abc.Sequence)]
        if items and typing.get_args(items[0]):
            return [_adapted(item, typing.get_args(items[0])[0], f"{name}[{i}]") for i, item in enumerate(value)]
        return value
    if isinstance(value, dict):
        return _adapted_map(value, options, name)
    if isinstance(value, str) and _BASE_60.fullmatch(value) and str not in options and {int, float} & set(options):
        raise yaml.YAMLError(f"{name} is {value!r}: expected a number")
    if value is None or isinstance(value, str) or str not in options or _fits(value, options):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    reason = " YAML reads no, off, on and yes as booleans." if isinstance(value, bool) else ""
    raise yaml.YAMLError(f"{name} is {value!r}: expected text.{reason} Put quotes around it")


def _adapted_map(value: dict[Any, Any], options: list[Any], name: str) -> dict[Any, Any]:
    data_class = next((option for option in options if dataclasses.is_dataclass(option)), None)
    if data_class is not None and "class_path" not in value:
        return _arguments(value, typing.cast(type, data_class))
    maps = [option for option in options if _is_a(option, collections.abc.Mapping)]
    if not maps or len(typing.get_args(maps[0])) != 2:
        return value
    key_hint, value_hint = typing.get_args(maps[0])
    return {
        _adapted(key, key_hint, f"a key of {name}"): _adapted(item, value_hint, f"{name}[{key!r}]")
        for key, item in value.items()
    }


def _options(hint: Any) -> list[Any]:
    if typing.get_origin(hint) in (Union, types.UnionType):
        return [option for part in typing.get_args(hint) for option in _options(part)]
    return [hint]


def _is_a(option: Any, kind: type) -> bool:
    origin = typing.get_origin(option)
    return isinstance(origin, type) and issubclass(origin, kind)


def _fits(value: Any, options: list[Any]) -> bool:
    """Whether an annotation takes a scalar as it is."""
    if Any in options or object in options:
        return True
    literals = [choice for option in options if typing.get_origin(option) is typing.Literal
                for choice in typing.get_args(option)]  # fmt: skip
    if any(choice == value and type(choice) is type(value) for choice in literals):
        return True
    if isinstance(value, bool):
        return bool in options
    return type(value) in options or (isinstance(value, int) and float in options)
