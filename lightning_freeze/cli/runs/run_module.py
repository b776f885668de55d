"""Builds the module of an earlier run, from its config or from the hyperparameters in its checkpoint."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningModule, seed_everything

from lightning_freeze.errors import ConfigurationError, suggest
from lightning_freeze.module import TransformerModule
from lightning_freeze.namespaces import either

#: The seed of a run whose config names none.
DEFAULT_SEED = 42
#: Arguments of TransformerModule that do not affect its weights.
_TRAINING_ONLY = ("optimizer", "lr_scheduler")


def build_module(checkpoint: Mapping[str, Any], config: str | None, class_path: str | None) -> LightningModule:
    """Build the module of a run, as it was before training.

    Args:
        checkpoint: The content of a checkpoint of the run, for its hyperparameters.
        config: The config file of the run, for its section ``model``.
        class_path: Import path of the module's class; by default that of the config, or TransformerModule.

    Raises:
        ConfigurationError: If there is no such class or file, or its arguments are not known.
    """
    saved = dict(checkpoint.get("hyper_parameters") or {})
    content = _read(config) if config else {}
    section = content.get("model") or {}
    seed = content.get("seed_everything", DEFAULT_SEED)
    if config and isinstance(seed, int) and seed is not False:
        seed_everything(None if seed is True else seed, verbose=False)
    if isinstance(section.get("class_path"), str) and class_path is None:
        return _from_config(section)
    arguments = section.get("init_args", section) if config else {}
    cls = _class_at(class_path) if class_path else TransformerModule
    if cls is TransformerModule and not ({"encoder"} & (saved.keys() | arguments.keys())):
        raise ConfigurationError(
            "The checkpoint does not say how its module is built: expected --module package.module.ClassName, --config "
            "config.yaml, or --weights with a file of the base weights."
        )
    return _instantiate(cls, {**saved, **arguments})


def _from_config(section: Mapping[str, Any]) -> LightningModule:
    _find_project()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(either(LightningModule), "model")
    try:
        module: LightningModule = parser.instantiate(parser.parse_object({"model": dict(section)})).model
    except Exception as error:
        raise ConfigurationError(f"The module of the config cannot be built: {error}") from error
    return _configured(module)


def _instantiate(cls: type[LightningModule], values: Mapping[str, Any]) -> LightningModule:
    parameters = inspect.signature(cls).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    known = {k: v for k, v in values.items() if (k in parameters or takes_all) and not k.startswith("_")}
    try:
        return _configured(cls(**{k: v for k, v in known.items() if k not in _TRAINING_ONLY}))
    except ConfigurationError:
        raise
    except Exception as error:
        given = ", ".join(sorted(known)) or "nothing"
        raise ConfigurationError(
            f"{cls.__name__} cannot be built from the hyperparameters of the checkpoint ({given}): {error}. Expected "
            f"--config with the config of the run, or --weights with its base weights."
        ) from error


def _configured(module: LightningModule) -> LightningModule:
    module.configure_model()
    return module


def _class_at(path: str) -> type[LightningModule]:
    _find_project()
    package, _, name = path.rpartition(".")
    try:
        found = importlib.import_module(package)
    except (ImportError, ValueError) as error:
        raise ConfigurationError(f"--module {path}: {error}. Expected package.module.ClassName.") from error
    cls = getattr(found, name, None)
    if not isinstance(cls, type) or not issubclass(cls, either(LightningModule)):
        names = [n for n, c in vars(found).items() if isinstance(c, type) and issubclass(c, either(LightningModule))]
        raise ConfigurationError(f"--module {path}: {package} has no LightningModule {name!r}.{suggest(name, names)}")
    return cls


def _find_project() -> None:
    # As `python -m` does: the module of a project is imported from the folder in which the command runs.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def _read(path: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise ConfigurationError(f"--config {path}: {error.strerror}. Expected the config file of the run.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"--config {path} is no YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigurationError(f"--config {path}: expected the config of a run, with a section 'model'.")
    return content
