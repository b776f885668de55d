"""Settings of modules that are plain attributes, such as the active adapter or a scale."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import LightningModule
from torch import nn

from lightning_freeze.cache.identity.attribute_watch import AttributeWatch
from lightning_freeze.cache.identity.keys import new_hash
from lightning_freeze.cache.identity.setting_values import has_grown, is_empty, setting_of, text_of
from lightning_freeze.namespaces import either

#: Attributes that every module has, and those that Lightning and the stand-ins of skipped layers write to.
_OWN = frozenset({*vars(LightningModule()), "forward"})
#: How attributes begin that ``fully_shard`` adds. One of them is named otherwise in each process.
_SHARDING = ("__composable_api_state_key", "_is_fsdp_managed_module", "_fsdp_use_orig_params")
#: Prefixes of settings in a model's config that concern the head, which some models write in their first forward pass,
#: and of requests, which are read in each call.
HEAD_SETTINGS = (
    "_name",
    "id2label",
    "label2id",
    "num_labels",
    "problem_type",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "architectures",
)


class ModuleSettings:
    """Reads the settings of some modules at each forward pass.

    An attribute that a module changes in its own forward pass, such as a counter, is not a setting. Neither is a list
    or dict of a LightningModule that grows, such as a history of losses.

    Args:
        modules: The modules.

    Attributes:
        changed: The module and the name of an attribute that differed at the latest :meth:`digest` that found any.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.changed: tuple[nn.Module, str] | None = None
        # A LightningModule has attributes for many purposes, and its tensors are losses and metrics.
        self._owners = [
            (number, module, isinstance(module, either(LightningModule))) for number, module in enumerate(modules)
        ]
        self._numbers: dict[int, list[int]] = {}  # of each module by its id; a module may be there several times
        for number, module in enumerate(modules):
            self._numbers.setdefault(id(module), []).append(number)
        self._ignored: set[tuple[int, str]] = set()
        self._records: dict[tuple[int, str], Any] = {}
        self._found: dict[tuple[int, str], Any] | None = None
        self._reads_again = False
        self._watch: AttributeWatch | None = None
        self._watched: list[Any] = []  # the configs that the watch looks at
        self._digest = b""

    def digest(self) -> bytes:
        """Return a hash of the present values, which is the same in every process."""
        if not self._reads_again and self._watch is not None and self._watch.is_same():
            return self._digest
        watch, self._watch = self._watch, None  # an error below must not leave a hash that looks current
        found = self._without_records(self._read())
        if self._reads_again or found != self._found:
            self._note_change(found)
            self._found, self._reads_again = found, False
            entry = new_hash()
            for key, value in sorted(found.items(), key=lambda item: item[0]):
                entry.update(f"{key}={text_of(value)};".encode())
            self._digest = entry.digest()
        is_current = watch is not None and watch.has_same_values() and self._has_watched_configs()
        self._watch = watch if is_current else self._new_watch(watch)
        return self._digest

    def _new_watch(self, before: AttributeWatch | None) -> AttributeWatch:
        """Return a watch on all attributes that :meth:`_read` reads."""
        owners = self._owners
        self._watched = configs = self._configs_and_parts()
        own, ignored = len(owners), self._ignored

        def describe(number: int, value: Any) -> Any:
            if hasattr(value, "to_dict"):  # no setting itself, but what a config contains may be settings
                return id(value)
            return setting_of(value, number < own and owners[number][2])

        def ignores(number: int, name: str) -> bool:
            if number >= own:
                return name.startswith(HEAD_SETTINGS)
            return _is_added(name) or (number, name) in ignored

        return AttributeWatch(
            [*(module for _, module, _ in owners), *configs],
            describe,
            ignores,
            {id(config) for config in configs},
            before.changing if before is not None else frozenset(),
        )

    def _has_watched_configs(self) -> bool:
        return [*map(id, self._configs_and_parts())] == [*map(id, self._watched)]

    def _without_records(self, found: dict[tuple[int, str], Any]) -> dict[tuple[int, str], Any]:
        """Leave out the containers of a LightningModule that are empty, or that have only grown since they were."""
        for number, _, is_root in self._owners:
            if not is_root:
                continue
            for key in [key for key in found if key[0] == number and isinstance(found[key], list)]:
                value, record = found[key], self._records.get(key)
                is_same = record is not None and (value == record or len(value) < len(record))
                if is_same or is_empty(value) or has_grown(record or (self._found or {}).get(key), value):
                    self._records[key] = found.pop(key)
                else:
                    self._records.pop(key, None)
        return found

    def _note_change(self, found: dict[tuple[int, str], Any]) -> None:
        before = self._found
        if before is None:
            return
        changed = next((key for key in found.keys() | before.keys() if found.get(key) != before.get(key)), None)
        if changed is not None:
            self.changed = (self._owners[changed[0]][1], changed[1])

    def end_real_pass(self) -> None:
        """Ignore from now on what a real forward pass has changed since :meth:`digest`."""
        self._ignore_changes(self._found or {})

    @contextmanager
    def real_pass(self) -> Iterator[None]:
        """Ignore from now on what a real forward pass changes that runs in this context."""
        before = self._without_records(self._read())
        yield
        self._ignore_changes(before)

    def _ignore_changes(self, before: dict[tuple[int, str], Any]) -> None:
        now = self._without_records(self._read())
        self._ignore({key for key in now.keys() | before.keys() if now.get(key) != before.get(key)})

    def ignore_as(self, other: ModuleSettings) -> None:
        """Ignore what the settings of other modules ignore, as far as they are of the same modules.

        Args:
            other: The settings of the other modules.
        """
        numbers = ((self._numbers.get(id(other._owners[number][1]), ()), name) for number, name in other._ignored)
        self._ignore({(own, name) for some, name in numbers for own in some})

    def _ignore(self, found: set[tuple[int, str]]) -> None:
        if not found <= self._ignored:
            self._ignored |= found
            self._watch = None

    def recheck(self) -> None:
        """Read tensors again at the next :meth:`digest`, in case their version counters missed a change."""
        self._reads_again = True

    def _read(self) -> dict[tuple[int, str], Any]:
        found = {
            (number, name): setting_of(value, is_root)
            for number, module, is_root in self._owners
            for name, value in vars(module).items()
            if not _is_added(name)
        }
        found.update(self._config_settings())
        return {key: value for key, value in found.items() if value is not None and key not in self._ignored}

    def _configs(self) -> list[tuple[int, Any]]:
        """Return the configs of Hugging Face models, each with the number of the first module that has it."""
        configs: dict[int, tuple[int, Any]] = {}
        for number, module, _ in self._owners:
            config = vars(module).get("config")
            if hasattr(config, "to_dict"):
                configs.setdefault(id(config), (number, config))
        return list(configs.values())

    def _configs_and_parts(self) -> list[Any]:
        return [config for _, root in self._configs() for config in _configs_in(root)]

    def _config_settings(self) -> dict[tuple[int, str], Any]:
        """Read the configs of Hugging Face models, which their modules share; what only the head reads is left out."""
        found: list[dict[str, Any]] = []
        settings: dict[tuple[int, str], Any] = {}
        for number, config in self._configs():
            values = {name: setting_of(value, False) for name, value in _config_values("config", config)}
            if values not in found:  # a block that was copied has a copy of the config
                found.append(values)
                settings.update({(number, name): value for name, value in values.items()})
        return settings


def _is_added(name: str) -> bool:
    """Whether an attribute is no setting because every module has it, or every sharded one."""
    return name in _OWN or name.startswith(_SHARDING)


def _configs_in(config: Any) -> Iterator[Any]:
    """Yield a config, and those of its parts that :func:`_config_values` reads."""
    yield config
    for name, value in vars(config).items():
        if not name.startswith(HEAD_SETTINGS) and hasattr(value, "to_dict"):
            yield from _configs_in(value)


def _config_values(path: str, config: Any) -> Iterator[tuple[str, Any]]:
    for name, value in vars(config).items():
        if name.startswith(HEAD_SETTINGS):
            continue
        if hasattr(value, "to_dict"):  # of one part of the model, such as its text encoder
            yield from _config_values(f"{path}.{name}", value)
        else:
            yield f"{path}.{name}", value
