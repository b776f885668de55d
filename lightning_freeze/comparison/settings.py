"""What a comparison file says: checked, with a message for everything that can be wrong with it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, cast

from lightning_freeze.errors import ConfigurationError, listing, suggest

#: A config of ``lightning-freeze fit``, or a part of one: its content, or the path of a file.
PartialConfig = Mapping[str, Any] | str
Mode = Literal["min", "max"]
Test = Literal["t", "wilcoxon"]

_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")


@dataclass(frozen=True)
class ComparisonSettings:
    """The content of a comparison file. Paths of configs are relative to the folder of that file.

    Attributes:
        plans: What each plan adds to the base config or changes in it, by the name of the plan.
        base: What all plans share, a config of ``lightning-freeze fit``; ``None`` if each plan is a whole one.
        seeds: The seeds. Every plan is fitted with each of them.
        baseline: The plan that the others are compared with; by default the first.
        metric: The metric that counts, such as ``"test_f1"``. By default the main one of the task.
        mode: ``"max"`` if a larger metric is better, ``"min"`` if a smaller one is. By default its name decides.
        test: The paired test over the seeds: ``"t"`` for Student's, ``"wilcoxon"`` for signed ranks.
        directory: Where all results go; by default ``runs/`` and the name of the comparison file.
        cache_dir: Folder of every FrozenPrefixCache that names none; by default ``cache`` in the directory.
        seed_options: Options that are set to the seed too, such as ``"data.split_seed"``.
        forgetting: Metric of what the model could do before the fit, as ``class_path`` and ``init_args``, or as the
            import path of a function. It is called with the module and the data module, before the fit and after it.
        keep_checkpoints: Whether the best checkpoint of each fit is kept.
        resources: What Ray reserves for each fit, such as ``{"num_cpus": 4, "num_gpus": 1}``.
        retries: How often Ray runs a fit again whose machine or process was lost.
    """

    plans: Mapping[str, PartialConfig]
    base: PartialConfig | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    baseline: str = ""
    metric: str | None = None
    mode: Mode | None = None
    test: Test = "t"
    directory: str = ""
    cache_dir: str | None = None
    seed_options: tuple[str, ...] = ()
    forgetting: Mapping[str, Any] | str | None = None
    keep_checkpoints: bool = False
    resources: Mapping[str, float] = field(default_factory=lambda: {"num_cpus": 1})
    retries: int = 3


def read_settings(content: Any, file: str | os.PathLike[str] | None = None) -> ComparisonSettings:
    """Check the content of a comparison file.

    Args:
        content: What was read from YAML.
        file: Where it was read from.

    Raises:
        ConfigurationError: Naming what is wrong, what was expected, and the nearest valid choice.
    """
    place = "compare" if file is None else os.fspath(file)
    names = [each.name for each in fields(ComparisonSettings)]
    if not isinstance(content, Mapping) or not content:
        raise ConfigurationError(f"{place}: expected a map with 'plans' and any of {listing(names[1:], 20)}.")
    for key in content:
        if key not in names:
            raise ConfigurationError(
                f"{place}: there is no setting {key!r}: expected one of {listing(names, 20)}.{suggest(key, names)}"
            )
    reader = _Reader(place, Path(".") if file is None else Path(file).parent, content)
    plans = reader.plans()
    return ComparisonSettings(
        plans=plans,
        base=None if content.get("base") is None else reader.config("base", content["base"]),
        seeds=reader.seeds(),
        baseline=reader.choice("baseline", next(iter(plans)), tuple(plans)),
        metric=reader.text("metric"),
        mode=cast("Mode | None", reader.choice("mode", None, ("min", "max"))),
        test=cast(Test, reader.choice("test", "t", ("t", "wilcoxon"))),
        directory=reader.text("directory") or f"runs/{'comparison' if file is None else Path(file).stem}",
        cache_dir=reader.text("cache_dir"),
        seed_options=reader.texts("seed_options"),
        forgetting=reader.forgetting(),
        keep_checkpoints=reader.flag("keep_checkpoints"),
        resources=reader.resources(),
        retries=reader.whole("retries", 3),
    )


class _Reader:
    """Reads one setting after the other.

    Args:
        place: The name of the file, for messages.
        folder: What paths are relative to.
        content: All settings.
    """

    def __init__(self, place: str, folder: Path, content: Mapping[str, Any]) -> None:
        self._place, self._folder, self._content = place, folder, content

    def plans(self) -> dict[str, PartialConfig]:
        given = self._content.get("plans")
        if not isinstance(given, Mapping) or not given:
            raise self._wrong("plans", given, "a map from the name of each plan to what it changes in the base config")
        for name in given:
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                near = re.sub(r"[^\w.+-]+", "_", str(name)).lstrip("_.+-")
                hint = f" Did you mean {near!r}?" if near and near != name else ""
                raise ConfigurationError(
                    f"{self._place}: plans: {name!r} names a plan: expected letters, digits, '_', '-', '+' and '.', "
                    f"because folders are named after it.{hint}"
                )
        folded: dict[str, str] = {}
        for name in given:
            other = folded.setdefault(name.lower(), name)
            if other != name:
                raise ConfigurationError(
                    f"{self._place}: plans: {other!r} and {name!r} differ in upper case alone: expected names of "
                    "folders that differ on every system."
                )
        if len(given) < 2:
            raise ConfigurationError(
                f"{self._place}: plans holds {next(iter(given))!r} alone: expected two plans or more."
            )
        return {name: self.config(f"plans.{name}", value) for name, value in given.items()}

    def config(self, name: str, value: Any) -> PartialConfig:
        if value is None:
            return {}
        if isinstance(value, Mapping):
            return value
        if isinstance(value, str):
            path = self._folder / value
            if not path.is_file():
                found = sorted(each.name for each in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
                raise ConfigurationError(
                    f"{self._place}: {name} is {value!r}, and there is no file {os.fspath(path)!r}: expected a config "
                    f"of `lightning-freeze fit`.{suggest(path.name, found)}"
                )
            return os.fspath(path.absolute())
        raise self._wrong(name, value, "a map of options, or the path of a config file")

    def seeds(self) -> tuple[int, ...]:
        given = self._content.get("seeds", 3)
        if _is_whole(given) and given > 0:
            return tuple(range(given))
        if isinstance(given, list | tuple) and given and all(_is_whole(seed) and 0 <= seed < 2**32 for seed in given):
            twice = next((seed for seed in given if list(given).count(seed) > 1), None)
            if twice is None:
                return tuple(given)
            raise ConfigurationError(f"{self._place}: seeds holds {twice} twice: expected each seed once.")
        raise self._wrong("seeds", given, "a number of seeds, 1 or more, or a list of them, such as [0, 1, 2]")

    def choice(self, name: str, default: str | None, choices: tuple[str, ...]) -> Any:
        given = self._content.get(name)
        if given is None:
            return default
        if given not in choices:
            raise self._wrong(name, given, f"one of {listing(choices)}", suggest(given, choices))
        return given

    def text(self, name: str) -> str | None:
        given = self._content.get(name)
        if given is not None and (not isinstance(given, str) or not given):
            raise self._wrong(name, given, "text")
        return given

    def texts(self, name: str) -> tuple[str, ...]:
        given = self._content.get(name) or []
        if not isinstance(given, list | tuple) or not all(isinstance(each, str) for each in given):
            raise self._wrong(name, given, "a list of options, such as ['data.split_seed']")
        return tuple(given)

    def flag(self, name: str) -> bool:
        given = self._content.get(name, False)
        if not isinstance(given, bool):
            raise self._wrong(name, given, "true or false")
        return given

    def whole(self, name: str, default: int) -> int:
        given = self._content.get(name, default)
        if not _is_whole(given) or given < 0:
            raise self._wrong(name, given, "a whole number, 0 or more")
        return int(given)

    def forgetting(self) -> Mapping[str, Any] | str | None:
        given = self._content.get("forgetting")
        if given is None or (isinstance(given, str) and "." in given):
            return given
        if not isinstance(given, Mapping) or not isinstance(given.get("class_path"), str):
            raise self._wrong(
                "forgetting", given, "{class_path: package.Metric, init_args: {...}}, or the import path of a function"
            )
        wrong = next((key for key in given if key not in ("class_path", "init_args")), None)
        if wrong is not None:
            nearest = suggest(wrong, ("class_path", "init_args"))
            raise ConfigurationError(
                f"{self._place}: forgetting has the key {wrong!r}: expected 'class_path' and 'init_args'.{nearest}"
            )
        return given

    def resources(self) -> Mapping[str, float]:
        given = self._content.get("resources", {"num_cpus": 1})
        if not isinstance(given, Mapping):
            raise self._wrong("resources", given, "a map, such as {num_cpus: 4, num_gpus: 1}")
        for name, amount in given.items():
            if isinstance(amount, bool) or not isinstance(amount, int | float) or not amount >= 0:
                raise self._wrong(f"resources.{name}", amount, "a number, 0 or more")
        return given

    def _wrong(self, name: str, value: object, expected: str, hint: str = "") -> ConfigurationError:
        return ConfigurationError(f"{self._place}: {name} is {value!r}: expected {expected}.{hint}")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
