"""Values of attributes as settings: described as text or nested lists, which are compared and hashed."""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from enum import Enum
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from torch import Tensor

from lightning_freeze.cache.identity.attribute_watch import PLAIN
from lightning_freeze.cache.identity.keys import hash_of
from lightning_freeze.cache.identity.values import record_of, version_of

_CONTAINERS = (list, tuple, set, frozenset, dict, deque)
_EXACT = frozenset(_CONTAINERS) - {deque}
_CODE = frozenset({types.FunctionType, types.BuiltinFunctionType, type, partial})
#: Largest number of elements that are read of one container or array, and of parts of one attribute.
_MOST, _MOST_PARTS = 64, 512


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


def setting_of(value: Any, is_root: bool) -> Any:
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


def is_empty(described: Any) -> bool:
    """Whether a described value is a container without parts."""
    return _is_container(described) and described[1] == 0


def has_grown(before: Any, now: Any) -> bool:
    """Whether a described container has the same parts as before and more, or parts that have grown."""
    if not (_is_container(before) and _is_container(now)) or before[0] != now[0] or len(before) > len(now):
        return False
    parts = list(zip(before[2:], now[2:], strict=False))
    grew = before[1] < now[1] or any(one != other for one, other in parts)
    return grew and all(one == other or has_grown(one, other) for one, other in parts)


def text_of(described: Any) -> str:
    """Return a described value as text that is the same in every process."""
    if isinstance(described, list):
        return f"[{', '.join(map(text_of, described))}]"
    return described.content() if isinstance(described, _TensorSetting) else str(described)


def _code_identity(code: Any) -> str:
    if isinstance(code, partial):
        own = [text_of(setting_of(values, False)) for values in (code.args, code.keywords)]
        return f"{_code_identity(code.func)}{''.join(own)}"
    place = f"{getattr(code, '__module__', '')}.{getattr(code, '__qualname__', code)}"
    if not isinstance(code, types.FunctionType):
        return f"{place} "
    # Two lambdas may have the same name, and the same instructions on other constants.
    given = [*(code.__defaults__ or ()), *(code.__kwdefaults__ or {}).values()]
    enclosed = [value for value in _enclosed(code) if type(value) in PLAIN]
    return f"{place} {_instructions(code.__code__)} {text_of(setting_of([given, enclosed], False))}"


def _enclosed(function: types.FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # a cell that is still empty
            yield cell.cell_contents


def _instructions(code: types.CodeType) -> str:
    constants = (
        _instructions(each) if isinstance(each, types.CodeType) else text_of(setting_of(each, False))
        for each in code.co_consts
    )
    return f"{code.co_code.hex()} {code.co_names} [{', '.join(constants)}]"
