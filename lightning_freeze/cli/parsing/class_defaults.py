"""Arguments of classes in a config: a class named alone has its own defaults; default objects can be written down."""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Iterator, Sequence
from typing import Any

import yaml
from jsonargparse import Namespace, _typehints

from lightning_freeze.cli.parsing.expected_text import check_option
from lightning_freeze.errors import ConfigurationError
from lightning_freeze.schedule.triggers import Trigger

_HOOK = "discard_init_args_on_class_path_change"
# To name these again changes nothing.
_DEFAULT_CLASSES = {"--data": "TextDataModule", "--model.optimizer": "AdamW"}


@contextlib.contextmanager
def own_defaults() -> Iterator[None]:
    """While this is open, a config that names another class starts from that class's defaults.

    jsonargparse keeps the arguments of the class named before wherever the new one has arguments of the same names:
    ``--model.optimizer Adam`` would keep the weight decay of AdamW. It has no option for that, so the one function that
    decides it is replaced while a command line is parsed.
    """
    original = getattr(_typehints, _HOOK)

    def discard(parser_or_action: Any, previous: Any, value: Any) -> None:
        if previous and previous.get("init_args") and previous["class_path"] != value["class_path"]:
            for name in list(previous["init_args"].keys()):
                del previous["init_args"][name]

    setattr(_typehints, _HOOK, discard)
    try:
        yield
    finally:
        setattr(_typehints, _HOOK, original)


def check_order(args: Sequence[str]) -> None:
    """Refuse an argument of a class that stands before the class: the class would discard it.

    Raises:
        ConfigurationError: For example for ``--model.optimizer.lr 0.1 --model.optimizer Adam``.
    """
    seen: list[str] = []
    for arg, following in zip(args, [*args[1:], ""], strict=True):
        name, _, value = arg.partition("=")
        if not name.startswith("--"):
            continue
        early = next((other for other in seen if other.startswith(f"{name}.")), None)
        is_default = (value or following).rpartition(".")[2] == _DEFAULT_CLASSES.get(name)
        if early is not None and not is_default:
            raise ConfigurationError(f"{early} stands before {name}: expected the class first, then its arguments.")
        seen.append(name)


def check_values(args: Sequence[str]) -> None:
    """Refuse values that the parser would take for something else.

    It would read the value from a file that stands where the folder of a model is expected, and take ``4:8`` for 248.

    Raises:
        ConfigurationError: For example for ``--model.encoder reviews.csv``.
    """
    for arg, following in zip(args, [*args[1:], ""], strict=True):
        name, _, value = arg.partition("=")
        path = value or following
        if name in ("--model.encoder", "--data.tokenizer", "--data.init_args.tokenizer") and os.path.isfile(path):
            raise ConfigurationError(
                f"{name.lstrip('-')} is {path!r}, a file: expected the folder that holds the model, or a hub name."
            )
        try:
            check_option(name.removeprefix("--"), path)
        except yaml.YAMLError as error:
            raise ConfigurationError(f"{name.lstrip('-').rpartition('.')[0]}.{error}.") from None


def described(config: Any) -> Any:
    """Return a config in which triggers that are objects, as defaults are, are given by class and arguments.

    Only such a config can be saved and used again.
    """
    if isinstance(config, Trigger):
        names = list(inspect.signature(type(config).__init__).parameters)[1:]
        values = vars(config)
        if set(names) <= set(values):
            arguments = {name: described(values[name]) for name in names}
            return _namespace({"class_path": _import_path(type(config)), "init_args": _namespace(arguments)})
        return config
    if isinstance(config, Namespace):
        result = config.clone()
        for name in list(vars(result)):
            setattr(result, name, described(getattr(result, name)))
        return result
    if isinstance(config, dict):
        return {name: described(value) for name, value in config.items()}
    if isinstance(config, list | tuple):
        return [described(value) for value in config]
    return config


def _namespace(values: dict[str, Any]) -> Namespace:
    return Namespace(**values)  # type: ignore[no-untyped-call]


def _import_path(cls: type) -> str:
    import lightning_freeze

    short = getattr(lightning_freeze, cls.__name__, None)
    return f"lightning_freeze.{cls.__name__}" if short is cls else f"{cls.__module__}.{cls.__qualname__}"
