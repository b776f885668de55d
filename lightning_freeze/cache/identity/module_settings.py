"""What modules compute with besides their weights: settings that are plain attributes, such as the active adapter."""

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
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_freeze.cache.identity.keys import hash_of, new_hash
from lightning_freeze.cache.identity.values import record_of, version_of

#: What every module has, and what Lightning and the stand-ins of skipped layers write to.
_OWN = frozenset({*vars(LightningModule()), "forward"})
_PLAIN = frozenset({bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size})
_CONTAINERS = (list, tuple, set, frozenset, dict, deque)
_EXACT = frozenset(_CONTAINERS) - {deque}
_CODE = frozenset({types.FunctionType, types.BuiltinFunctionType, type, partial})
#: Elements of one container or array that are looked at, and parts of one attribute.
_MOST, _MOST_PARTS = 64, 512


class Settings:
    """Reads the settings of some modules at each forward pass.

    What a module changes in its own forward pass, a counter for instance, is none of them.

    Args:
        modules: The modules.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        # Lightning's module has attributes for many purposes, and its tensors are losses and metrics.
        self._owners = [(number, module, isinstance(module, LightningModule)) for number, module in enumerate(modules)]
        self._counters: set[tuple[int, str]] = set()
        self._found: dict[tuple[int, str], Any] | None = None
        self._digest = b""

    def digest(self) -> bytes:
        """A hash of their present values, which depends on no process."""
        found = self._look()
        if found != self._found:
            self._found = found
            entry = new_hash()
            for key, value in sorted(found.items(), key=lambda item: item[0]):
                entry.update(f"{key}={_text(value)};".encode())
            self._digest = entry.digest()
        return self._digest

    def end_pass(self) -> None:
        """A real forward pass is over: what has changed since :meth:`digest` is left out from now on."""
        self._leave_out(self._found or {})

    @contextmanager
    def passing(self) -> Iterator[None]:
        """A real forward pass runs inside: what it changes is left out from now on."""
        before = self._look()
        yield
        self._leave_out(before)

    def _leave_out(self, before: dict[tuple[int, str], Any]) -> None:
        now = self._look()
        self._counters |= {key for key in now.keys() | before.keys() if now.get(key) != before.get(key)}

    def look_again(self) -> None:
        """Read tensors again at the next :meth:`digest`: somebody may have written to them without a trace."""
        self._found = None

    def _look(self) -> dict[tuple[int, str], Any]:
        found = {
            (number, name): _setting(value, is_root)
            for number, module, is_root in self._owners
            for name, value in vars(module).items()
            if name not in _OWN
        }
        return {key: value for key, value in found.items() if value is not None and key not in self._counters}


class _Written:
    """A tensor in an attribute: the same as before as long as nobody has put another one there or written into it."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self._state = (tensor.data_ptr(), version_of(tensor), tensor.shape, tensor.dtype)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Written) and self._state == other._state

    __hash__ = None  # type: ignore[assignment]

    def content(self) -> str:
        """A hash of what is in it."""
        return f"{tuple(self._tensor.shape)} {self._tensor.dtype} {hash_of(self._tensor).hex()}"


def _setting(value: Any, is_root: bool) -> Any:
    """A value as text or, with tensors in it, as a list of such; ``None`` if it is no setting.

    Args:
        value: An attribute.
        is_root: Whether it is one of a LightningModule, where tensors, and all that is kept with them, are results.
    """
    try:
        return _seen(value, is_root, [_MOST_PARTS])
    except _Result:
        return None


class _Result(Exception):
    """There is a tensor among the attributes of a LightningModule."""


def _seen(value: Any, is_root: bool, left: list[int]) -> Any:
    """The same for an attribute or a part of one; ``left`` counts how many parts may still be looked at."""
    left[0] -= 1
    kind = type(value)
    if kind in _PLAIN:
        return repr(value)
    if isinstance(value, Tensor):
        if is_root:
            raise _Result
        return None if value.requires_grad else _Written(value)  # what trains and feeds in is noticed elsewhere
    if isinstance(value, Enum):
        return f"{kind.__name__}.{value.name}"
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and not is_root):
        flat = np.asarray(value).reshape(-1)
        some = "" if flat.dtype == object else flat[:: max(1, flat.size // _MOST)].tolist()
        return f"{flat.dtype}{np.shape(value)}{some}"
    if kind in _EXACT or (isinstance(value, _CONTAINERS) and not is_root):
        return _container(value, is_root, left)
    if kind in _CODE:
        return _named(value)
    # The config of a Hugging Face model counts elsewhere, without what concerns its head.
    record = None if hasattr(value, "to_dict") else record_of(value)
    if record is None or left[0] <= 0:
        return None
    seen: list[Any] = [kind.__name__]
    for name, part in record.items():
        with suppress(_Result):
            if part is not value and (shown := _seen(part, is_root, left)) is not None:
                seen.append([name, shown])
    return seen


def _container(value: Any, is_root: bool, left: list[int]) -> Any:
    parts: Any = value.items() if isinstance(value, dict) else value
    if isinstance(value, (set, frozenset)):  # in no order that another process would repeat
        parts = sorted(value, key=repr) if len(value) <= _MOST else ()
    seen = [_seen(part, is_root, left) for part in islice(parts, _MOST) if left[0] > 0]
    if all(part is None for part in seen) and (seen or is_root):  # one that is still empty may be for results
        return None
    return [type(value).__name__, len(value), *seen]


def _text(seen: Any) -> str:
    """What was seen as text that depends on no process."""
    if isinstance(seen, list):
        return f"[{', '.join(map(_text, seen))}]"
    return seen.content() if isinstance(seen, _Written) else str(seen)


def _named(code: Any) -> str:
    if isinstance(code, partial):
        return f"{_named(code.func)}{_text(_setting(code.args, False))}{_text(_setting(code.keywords, False))}"
    body = getattr(code, "__code__", None)  # what a lambda does is not in its name
    return (
        f"{getattr(code, '__module__', '')}.{getattr(code, '__qualname__', code)} {body.co_code.hex() if body else ''}"
    )
