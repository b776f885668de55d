"""Settings of modules that are plain attributes, such as the active adapter or a scale."""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from enum import Enum
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_freeze.cache.identity.attribute_watch import PLAIN, AttributeWatch
from lightning_freeze.cache.identity.keys import hash_of, new_hash
from lightning_freeze.cache.identity.values import record_of, version_of
from lightning_freeze.namespaces import either

#: Attributes that every module has, and those that Lightning and the stand-ins of skipped layers write to.
_OWN = frozenset({*vars(LightningModule()), "forward"})
#: Prefixes of settings in a model's config that concern the head; some models write these in their first forward pass.
HEAD_SETTINGS = (
    "_name",
    "id2label",
    "label2id",
    "num_labels",
    "problem_type",
    "output_",
    "return_dict",
    "architectures",
)
_CONTAINERS = (list, tuple, set, frozenset, dict, deque)
_EXACT = frozenset(_CONTAINERS) - {deque}
_CODE = frozenset({types.FunctionType, types.BuiltinFunctionType, type, partial})
#: Largest number of elements that are read of one container or array, and of parts of one attribute.
_MOST, _MOST_PARTS = 64, 512


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
        self._ignored: set[tuple[int, str]] = set()
        self._records: dict[tuple[int, str], Any] = {}
        self._found: dict[tuple[int, str], Any] | None = None
        self._reads_again = False
        self._watch: AttributeWatch | None = None
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
                entry.update(f"{key}={_text(value)};".encode())
            self._digest = entry.digest()
        self._watch = watch if watch is not None and watch.has_same_values() else self._new_watch(watch)
        return self._digest

    def _new_watch(self, before: AttributeWatch | None) -> AttributeWatch:
        """Return a watch on all attributes that :meth:`_read` reads."""
        owners = self._owners
        configs = [config for _, root in self._configs() for config in _configs_in(root)]
        own, ignored = len(owners), self._ignored

        def describe(number: int, value: Any) -> Any:
            return _setting(value, number < own and owners[number][2])

        def ignores(number: int, name: str) -> bool:
            return (name in _OWN or (number, name) in ignored) if number < own else name.startswith(HEAD_SETTINGS)

        return AttributeWatch(
            [*(module for _, module, _ in owners), *configs],
            describe,
            ignores,
            {id(config) for config in configs},
            before.changing if before is not None else frozenset(),
        )

    def _without_records(self, found: dict[tuple[int, str], Any]) -> dict[tuple[int, str], Any]:
        """Leave out the containers of a LightningModule that are empty, or that have only grown since they were."""
        for number, _, is_root in self._owners:
            if not is_root:
                continue
            for key in [key for key in found if key[0] == number and isinstance(found[key], list)]:
                value, record = found[key], self._records.get(key)
                is_same = record is not None and (value == record or len(value) < len(record))
                if is_same or _is_empty(value) or _has_grown(record or (self._found or {}).get(key), value):
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
        found = {key for key in now.keys() | before.keys() if now.get(key) != before.get(key)}
        if not found <= self._ignored:
            self._ignored |= found
            self._watch = None

    def recheck(self) -> None:
        """Read tensors again at the next :meth:`digest`, in case their version counters missed a change."""
        self._reads_again = True

    def _read(self) -> dict[tuple[int, str], Any]:
        found = {
            (number, name): _setting(value, is_root)
            for number, module, is_root in self._owners
            for name, value in vars(module).items()
            if name not in _OWN
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

    def _config_settings(self) -> dict[tuple[int, str], Any]:
        """Read the configs of Hugging Face models, which their modules share; what only the head reads is left out."""
        found: list[dict[str, Any]] = []
        settings: dict[tuple[int, str], Any] = {}
        for number, config in self._configs():
            values = {name: _setting(value, False) for name, value in _config_values("config", config)}
            if values not in found:  # a block that was copied has a copy of the config
                found.append(values)
                settings.update({(number, name): value for name, value in values.items()})
        return settings


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


class _TensorSetting:
    """A tensor in an attribute, compared by identity and version rather than by content."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self._state = (tensor.data_ptr(), version_of(tensor), tensor.shape, tensor.dtype)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _TensorSetting) and self._state == other._state

    __hash__ = None  # type: ignore[assignment]

    def content(self) -> str:
        """Return its shape, dtype and a hash of its content."""
        return f"{tuple(self._tensor.shape)} {self._tensor.dtype} {hash_of(self._tensor).hex()}"


def _setting(value: Any, is_root: bool) -> Any:
    """Return a value as text, or as a nested list if it contains tensors; ``None`` if it is not a setting.

    Args:
        value: An attribute.
        is_root: Whether it belongs to a LightningModule, where tensors, and what is stored with them, are results.
    """
    try:
        return _described(value, is_root, [_MOST_PARTS])
    except _Result:
        return None


class _Result(Exception):
    """A value of a LightningModule contains a tensor, so that it is a result."""


def _described(value: Any, is_root: bool, left: list[int]) -> Any:
    """Do the same for an attribute or a part of one; ``left`` counts how many more parts may be read."""
    left[0] -= 1
    kind = type(value)
    if kind in PLAIN:
        return repr(value)
    if isinstance(value, Tensor):
        if is_root:
            raise _Result
        return None if value.requires_grad else _TensorSetting(value)  # tensors that train are noticed elsewhere
    if isinstance(value, Enum):
        return f"{kind.__name__}.{value.name}"
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and not is_root):
        flat = np.asarray(value).reshape(-1)
        some = "" if flat.dtype == object else flat[:: max(1, flat.size // _MOST)].tolist()
        return f"{flat.dtype}{np.shape(value)}{some}"
    if kind in _EXACT or (isinstance(value, _CONTAINERS) and not is_root):
        return _container(value, is_root, left)
    if kind in _CODE:
        return _code_identity(value)
    record = None if hasattr(value, "to_dict") else record_of(value)  # configs are read once, not by each module
    if record is None or left[0] <= 0:
        return None
    described: list[Any] = [kind.__name__]
    for name, part in record.items():
        with suppress(_Result):
            if part is not value and (shown := _described(part, is_root, left)) is not None:
                described.append([name, shown])
    return described


def _container(value: Any, is_root: bool, left: list[int]) -> Any:
    parts: Any = value.items() if isinstance(value, dict) else value
    if isinstance(value, (set, frozenset)):  # their order differs between processes
        parts = sorted(value, key=repr) if len(value) <= _MOST else ()
    described = [_described(part, is_root, left) for part in islice(parts, _MOST) if left[0] > 0]
    if described and all(part is None for part in described):
        return None
    return [type(value).__name__, len(value), *described]


def _is_container(described: Any) -> bool:
    return isinstance(described, list) and len(described) > 1 and isinstance(described[1], int)


def _is_empty(described: Any) -> bool:
    return _is_container(described) and described[1] == 0


def _has_grown(before: Any, now: Any) -> bool:
    """Whether a described container has the same parts as before and more, or parts that have grown."""
    if not (_is_container(before) and _is_container(now)) or before[0] != now[0] or len(before) > len(now):
        return False
    parts = list(zip(before[2:], now[2:], strict=False))
    grew = before[1] < now[1] or any(one != other for one, other in parts)
    return grew and all(one == other or _has_grown(one, other) for one, other in parts)


def _text(described: Any) -> str:
    """Return a described value as text that is the same in every process."""
    if isinstance(described, list):
        return f"[{', '.join(map(_text, described))}]"
    return described.content() if isinstance(described, _TensorSetting) else str(described)


def _code_identity(code: Any) -> str:
    if isinstance(code, partial):
        return f"{_code_identity(code.func)}{_text(_setting(code.args, False))}{_text(_setting(code.keywords, False))}"
    body = getattr(code, "__code__", None)  # two lambdas may have the same name
    return (
        f"{getattr(code, '__module__', '')}.{getattr(code, '__qualname__', code)} {body.co_code.hex() if body else ''}"
    )
