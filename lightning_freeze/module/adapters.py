"""Adapters of the peft library in the blocks of a model, from options by name."""

from __future__ import annotations

import dataclasses
import typing
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from types import ModuleType
from typing import Any

from torch import nn

from lightning_freeze.arguments.annotations import described, fits, reading_of
from lightning_freeze.checkpoints.loaded import is_loaded
from lightning_freeze.errors import ConfigurationError, listing, suggest
from lightning_freeze.module.pooling import PooledModel, unwrapped
from lightning_freeze.module.tasks import Task

#: Methods that need more than a config, and what.
_INCOMPLETE = {
    "ADALORA": "calls of its own in each training step, and gradients of all adapters in each of them",
    "XLORA": "adapters that have been trained before",
    "POLY": "the number of a task beside each example",
}
#: Fields of peft's configs that this module sets, or that peft sets itself.
_SET_HERE = frozenset({"task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path"}) | {
    *("revision", "inference_mode", "runtime_config")
}
#: Options that name modules of the model.
_MODULE_NAMES = ("target_modules", "feedforward_modules", "modules_to_save", "exclude_modules")
#: The classes of peft that generate text. All other tasks take the general one, which passes any input on.
_TASK_TYPES = {"causal-lm": "CAUSAL_LM", "seq2seq-lm": "SEQ_2_SEQ_LM"}


def add_adapters(model: nn.Module, options: Mapping[str, Any], task: Task) -> nn.Module:
    """Put trainable adapters into a model, and freeze all other weights but the head of the task.

    The small head of :class:`PooledModel` stays as it is, outside of what peft wraps. A head of transformers is among
    the ``modules_to_save`` of peft: it trains as a whole and is saved with the adapters. So is any other part that no
    checkpoint gave, such as a pooler, because the adapters could not make up for random weights. The head of a language
    model is frozen like the rest.

    Args:
        model: The model of a task, with its weights loaded.
        options: ``method``, the name of a method of peft such as ``"lora"``, and fields of its config.
        task: The task of the model.

    Returns:
        The model with adapters: a ``peft.PeftModel``, or the :class:`PooledModel` around one.

    Raises:
        ConfigurationError: peft is not installed, or the options are wrong or do not fit the model.
    """
    peft = _import_peft()
    inner = model.encoder if isinstance(model, PooledModel) else model
    if any(hasattr(module, "peft_config") for module in inner.modules()):
        raise ConfigurationError(
            "peft was given, and the encoder has adapters of peft already: expected one of the two, encoder=<a model "
            "without adapters> or no peft."
        )
    cls, fields = _config_class(peft, options)
    settings = _checked(cls, fields, options)
    parts = [*(() if inner is not model or task.is_language_model else _head_of(inner)), *_without_checkpoint(inner)]
    names = {name: module for name, module in inner.named_modules() if name}
    for field in _MODULE_NAMES:
        if isinstance(settings.get(field), list):
            _check_names(field, settings[field], names)
    if parts and "modules_to_save" in fields:
        settings["modules_to_save"] = list(dict.fromkeys([*(settings.get("modules_to_save") or ()), *parts]))
    if task.name in _TASK_TYPES and inner is model:
        settings["task_type"] = _TASK_TYPES[task.name]
    try:
        with warnings.catch_warnings():
            # GPT-2's layers hold their weights transposed; peft notices and sets the option.
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
            adapted: nn.Module = peft.get_peft_model(inner, cls(**settings))
    except (ValueError, TypeError, KeyError, AttributeError, NotImplementedError, ImportError) as error:
        raise ConfigurationError(_reason(error, settings, inner)) from error
    if isinstance(model, PooledModel):
        model.encoder = adapted
        return model
    return adapted


def _import_peft() -> ModuleType:
    try:
        import peft
    except ImportError as error:
        raise ConfigurationError(
            "TransformerModule(peft=...) needs peft, which is not installed: expected "
            "`pip install 'lightning-freeze[peft]'`."
        ) from error
    return peft


def _config_class(peft: ModuleType, options: Mapping[str, Any]) -> tuple[type, dict[str, Any]]:
    """Return the config class of the method, and its fields with their types."""
    known = {kind.value: cls for kind, cls in peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    methods = {name.lower(): cls for name, cls in known.items() if name not in _INCOMPLETE and _is_in_blocks(peft, cls)}
    name = options.get("method")
    if name is None:
        nearest = next((f" Did you mean 'method' for {key!r}?" for key in options if key in ("type", "peft_type")), "")
        raise ConfigurationError(
            f"peft lacks 'method': expected the name of a method, as in {{method: lora, r: 8}}; one of "
            f"{listing(methods)}.{nearest}"
        )
    key = str(name).lower().replace("-", "_")
    if key.upper() in _INCOMPLETE:
        raise ConfigurationError(
            f"peft: the method {name!r} needs {_INCOMPLETE[key.upper()]}: expected another one, such as 'lora'."
        )
    if key not in methods and key.upper() in known:
        raise ConfigurationError(
            f"peft: the method {name!r} puts no adapters into the blocks: expected one of {listing(methods)}."
        )
    if key not in methods:
        raise ConfigurationError(
            f"peft: unknown method {name!r}: expected one of {listing(methods)}.{suggest(key, methods)}"
        )
    return methods[key], _fields(methods[key])


def _is_in_blocks(peft: ModuleType, cls: type) -> bool:
    return not issubclass(cls, peft.PromptLearningConfig) and "target_modules" in _field_names(cls)


def _field_names(cls: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(cls) if field.init and field.name not in _SET_HERE]


def _fields(cls: type) -> dict[str, Any]:
    """Return the options of a config class by name, with their types where these can be read."""
    try:
        hints = typing.get_type_hints(cls)
    except (NameError, TypeError):  # a type that peft imports only for type checkers
        hints = {}
    return {name: hints.get(name, Any) for name in _field_names(cls)}


def _checked(cls: type, fields: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    method = options["method"]
    settings = {name: value for name, value in options.items() if name != "method"}
    for name, value in settings.items():
        if name in _SET_HERE:
            raise ConfigurationError(f"peft: {name!r} is not an option here: the task and the encoder set it.")
        if name not in fields:
            raise ConfigurationError(
                f"peft: {name!r} is no option of the method {method!r}: expected one of {listing(fields, 40)}."
                f"{suggest(name, fields)}"
            )
        if not fits(value, fields[name]):
            reading = reading_of(value, fields[name]) if isinstance(value, str) else None
            nearest = "" if reading is None else f" Did you mean {reading!r}?"
            raise ConfigurationError(f"peft: {name} is {value!r}: expected {described(fields[name])}.{nearest}")
    for name, value in settings.items():
        if isinstance(value, tuple | set | frozenset) and name in _MODULE_NAMES:
            settings[name] = list(value)
    return settings


def _check_names(field: str, given: Iterable[str], modules: Collection[str]) -> None:
    """Check that each name is that of a module, or the end of one; peft passes over those that match nothing."""
    for name in given:
        if not any(full == name or full.endswith(f".{name}") for full in modules):
            ends = dict.fromkeys(full.rpartition(".")[2] for full in modules)
            near = suggest(name, [end for end in ends if not end.isdecimal()])
            raise ConfigurationError(
                f"peft: {field} holds {name!r}, and no module of the encoder has a name that ends so.{near}"
            )


def _head_of(model: nn.Module) -> Iterator[str]:
    """Yield the names of the parts that follow the encoder in a transformers model with a head."""
    base = getattr(model, "base_model", model)
    if base is model:
        return
    for name, child in model.named_children():
        if child is not base and any(True for _ in child.parameters()):
            yield name


def _without_checkpoint(model: nn.Module) -> list[str]:
    """The full names of the largest modules whose parameters no checkpoint gave, if most others have been loaded."""
    base = unwrapped(model)
    base = getattr(base, "base_model", base)
    parameters = list(base.parameters())
    if 2 * sum(map(is_loaded, parameters)) <= len(parameters):
        return []
    found: list[str] = []
    for name, module in model.named_modules():
        inside = list(module.parameters())
        if name and inside and not any(map(is_loaded, inside)) and not _is_below(name, found) and _is_in(module, base):
            found.append(name)
    return found


def _is_below(name: str, others: Iterable[str]) -> bool:
    return any(name.startswith(f"{other}.") for other in others)


def _is_in(module: nn.Module, base: nn.Module) -> bool:
    return any(module is each for each in base.modules())


def _reason(error: Exception, settings: Mapping[str, Any], model: nn.Module) -> str:
    first = str(error).strip().partition("\n")[0]
    linear = dict.fromkeys(n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, nn.Linear))
    if settings.get("target_modules") is None and "target_modules" in first:
        return (
            f"peft does not know where the adapters of {type(unwrapped(model)).__name__} belong ({first}): expected "
            f"target_modules, a list of names of modules, such as {list(linear)[:6]}."
        )
    return f"peft: {first}"
