"""The fits of a comparison, and what tells one from another."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lightning_freeze.comparison.records import FitResult
from lightning_freeze.comparison.settings import ComparisonSettings
from lightning_freeze.errors import ConfigurationError, suggest

#: What has no effect on any measurement, or is the same for all fits.
_IDLE = {
    "seed_everything": (),
    "report": (),
    "trainer": ("logger", "default_root_dir", "enable_progress_bar", "enable_model_summary", "log_every_n_steps"),
}
_BLOCK = 1 << 20


@dataclass(frozen=True)
class FitTask:
    """One fit that is to be run, in this process or another.

    Attributes:
        plan: The name of the plan.
        seed: The seed.
        config: The whole config of the fit.
        directory: Where the logs and checkpoints go.
        key: What tells the fit from any other; see :func:`fingerprint`.
        forgetting: The metric of forgetting, as in :class:`ComparisonSettings`.
        keep_checkpoint: Whether the best checkpoint is kept.
    """

    plan: str
    seed: int
    config: Mapping[str, Any]
    directory: str
    key: str
    forgetting: Mapping[str, Any] | str | None = None
    keep_checkpoint: bool = False

    @property
    def name(self) -> str:
        """The fit in words."""
        return f"{self.plan}, seed {self.seed}"

    @property
    def log(self) -> Path:
        """The file that holds all output of the fit."""
        return Path(f"{self.directory}.log")

    def to_dict(self) -> dict[str, Any]:
        """The task as dicts and numbers, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class FitOutcome:
    """How a fit ended.

    Attributes:
        task: The fit.
        result: Its measurements; ``None`` if it has failed.
        error: Why it has failed; empty if it has not.
    """

    task: FitTask
    result: FitResult | None
    error: str = ""


def tasks_of(settings: ComparisonSettings, configs: Mapping[str, Mapping[str, Any]], root: Path) -> list[FitTask]:
    """All fits of a comparison, seed by seed, so that one that is stopped early has complete seeds to compare.

    Args:
        settings: The settings.
        configs: The whole config of each plan.
        root: The directory of the comparison.

    Raises:
        ConfigurationError: If a plan has no such option as one in ``seed_options``.
    """
    cache = str(Path(settings.cache_dir or root / "cache").absolute())
    contents: dict[str, str] = {}
    found = []
    for seed in settings.seeds:
        for plan in settings.plans:
            config = dict(configs[plan])
            for option in settings.seed_options:
                config = with_option(config, option, seed, plan)
            found.append(
                FitTask(
                    plan=plan,
                    seed=seed,
                    config=with_cache_dir(config, cache),
                    directory=str((root / "fits" / plan / f"seed_{seed}").absolute()),
                    key=fingerprint(config, seed, settings.forgetting, contents),
                    forgetting=settings.forgetting,
                    keep_checkpoint=settings.keep_checkpoints,
                )
            )
    return found


def fingerprint(config: Mapping[str, Any], seed: int, forgetting: Any, contents: dict[str, str] | None = None) -> str:
    """What the measurements of a fit depend on, as a hash: its whole config, its seed, and the data that it names.

    Files count with their content, folders with the names and sizes of the files in them.

    Args:
        config: The whole config.
        seed: The seed.
        forgetting: The metric of forgetting.
        contents: Hashes of files by path that are known already; new ones are added.
    """
    known = {} if contents is None else contents
    used = set(_paths(config.get("data")))
    encoder = _at(config, "model", "encoder")
    if isinstance(encoder, str) and Path(encoder).exists():
        used.add(encoder)
    for path in used - set(known):
        known[path] = _content(Path(path))
    files = {path: known[path] for path in used}
    parts = {"config": essential(config), "seed": seed, "forgetting": forgetting, "files": files}
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def essential(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without the options that have no effect on a measurement.

    Args:
        config: The whole config.
    """
    kept = {}
    for section, value in config.items():
        if section not in _IDLE:
            kept[section] = value
        elif isinstance(value, Mapping) and _IDLE[section]:
            kept[section] = {name: item for name, item in value.items() if name not in _IDLE[section]}
    return kept


def changes(before: Mapping[str, Any], after: Mapping[str, Any], limit: int = 3) -> str:
    """The options in which two configs differ, in words; empty if they do not.

    Args:
        before: A config.
        after: Another one.
        limit: How many options are named.
    """
    old, new = (dict(_leaves(essential(config))) for config in (before, after))
    names = [name for name in dict.fromkeys([*old, *new]) if old.get(name) != new.get(name)]
    shown = [f"{name}: {_shown(old, name)} -> {_shown(new, name)}" for name in names[:limit]]
    more = [f"{len(names) - limit} more"] if len(names) > limit else []
    return ", ".join([*shown, *more])


def with_option(config: Mapping[str, Any], option: str, value: Any, plan: str) -> dict[str, Any]:
    """A config in which an option has another value.

    Args:
        config: The config.
        option: Its name with dots; ``init_args`` may be left out.
        value: The value.
        plan: The plan, for the message.

    Raises:
        ConfigurationError: If there is no such option.
    """
    copy: dict[str, Any] = dict(config)
    node, names = copy, option.split(".")
    for position, name in enumerate(names):
        if "class_path" in node and name not in node and isinstance(node.get("init_args"), Mapping):
            node["init_args"] = dict(node["init_args"])
            node = node["init_args"]
        is_last = position == len(names) - 1
        if name not in node or not (is_last or isinstance(node[name], Mapping)):
            known = [".".join([*names[:position], each]) for each in node]
            nearest = suggest(".".join(names[: position + 1]), known)
            raise ConfigurationError(f"seed_options: plan {plan!r} has no option {option!r}.{nearest}")
        node[name] = value if is_last else dict(node[name])
        node = node[name]
    return copy


def with_cache_dir(config: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """A config in which every FrozenPrefixCache that names no folder has this one.

    Args:
        config: The config.
        folder: The folder.
    """
    trainer = config.get("trainer")
    callbacks = trainer.get("callbacks") if isinstance(trainer, Mapping) else None
    if not isinstance(trainer, Mapping) or not isinstance(callbacks, Sequence):
        return dict(config)
    return {**config, "trainer": {**trainer, "callbacks": [_with_folder(each, folder) for each in callbacks]}}


def _with_folder(callback: Any, folder: str) -> Any:
    if not isinstance(callback, Mapping):
        return callback
    arguments = callback.get("init_args") or {}
    is_cache = str(callback.get("class_path")).rpartition(".")[2] == "FrozenPrefixCache"
    if not is_cache or arguments.get("cache_dir") is not None:
        return callback
    return {**callback, "init_args": {**arguments, "cache_dir": folder}}


def _at(config: Mapping[str, Any], *names: str) -> Any:
    value: Any = config
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _paths(value: Any) -> Iterator[str]:
    """The files and folders that a part of a config names."""
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _paths(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _paths(item)
    elif isinstance(value, str) and _looks_like_path(value) and Path(value).exists():
        yield value


def _looks_like_path(text: str) -> bool:
    """Whether a text is more likely a path than the name of a column or a class."""
    return len(text) < 4096 and ("/" in text or os.sep in text or bool(Path(text).suffix))


def _content(path: Path) -> str:
    found = hashlib.sha256()
    if path.is_dir():
        for each in sorted(path.rglob("*")):
            if each.is_file():
                found.update(f"{each.relative_to(path)} {each.stat().st_size}\n".encode())
        return found.hexdigest()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            found.update(block)
    return found.hexdigest()


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        for position, item in enumerate(value):
            yield from _leaves(item, f"{name}[{position}]")
    else:
        yield name, value


def _shown(leaves: Mapping[str, Any], name: str) -> str:
    return repr(leaves[name]) if name in leaves else "none"
