"""What modules compute with besides their weights: settings that are plain attributes, such as the active adapter."""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_freeze.cache.keys import bytes_of, new_hash
from lightning_freeze.cache.selfcheck import record_of, version_of

#: What every module has, and what Lightning and the stand-ins of skipped layers write to.
_OWN = frozenset({*vars(LightningModule()), "forward"})
_PLAIN = frozenset({bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size})
_CONTAINERS = (list, tuple, set, frozenset, dict, deque)
_CODE = frozenset({types.FunctionType, types.BuiltinFunctionType, type, partial})
#: Elements of a container or an array that are looked at.
_MOST = 64


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
            (number, name): _seen(value, tensors=not is_root)
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
        entry = new_hash()
        entry.update(bytes_of(self._tensor.reshape(1, -1)))
        return f"{tuple(self._tensor.shape)} {self._tensor.dtype} {entry.hexdigest()}"


def _seen(value: Any, tensors: bool = True) -> Any:
    """A value as text or, with tensors in it, as a list of such; ``None`` if it is no setting.

    Args:
        value: An attribute, or a part of one.
        tensors: Whether tensors are settings.
    """
    kind = type(value)
    if kind in _PLAIN:
        return repr(value)
    if isinstance(value, Tensor):
        return _Written(value) if tensors else None
    if isinstance(value, Enum):
        return f"{kind.__name__}.{value.name}"
    if isinstance(value, (np.generic, np.ndarray)):
        flat = np.asarray(value).reshape(-1)
        return f"{flat.dtype}{np.shape(value)}{flat[:: max(1, flat.size // _MOST)].tolist()}"
    if isinstance(value, _CONTAINERS):
        parts: Any = value.items() if isinstance(value, dict) else value
        if isinstance(value, (set, frozenset)):  # in no order that another process would repeat
            parts = sorted(value, key=repr) if len(value) <= _MOST else ()
        seen = [_seen(part, tensors) for part in islice(parts, _MOST)]
        return [kind.__name__, len(value), *seen] if any(part is not None for part in seen) or not seen else None
    if kind in _CODE:
        return _named(value)
    # The config of a Hugging Face model counts elsewhere, without what concerns its head.
    record = None if hasattr(value, "to_dict") else record_of(value)
    if record is None:
        return None
    fields = {name: _seen(part, tensors) for name, part in record.items() if part is not value}
    return [kind.__name__, *([name, part] for name, part in fields.items() if part is not None)]


def _text(seen: Any) -> str:
    """What was seen as text that depends on no process."""
    if isinstance(seen, list):
        return f"[{', '.join(map(_text, seen))}]"
    return seen.content() if isinstance(seen, _Written) else str(seen)


def _named(code: Any) -> str:
    if isinstance(code, partial):
        return f"{_named(code.func)}{_text(_seen(code.args))}{_text(_seen(code.keywords))}"
    body = getattr(code, "__code__", None)  # what a lambda does is not in its name
    return (
        f"{getattr(code, '__module__', '')}.{getattr(code, '__qualname__', code)} {body.co_code.hex() if body else ''}"
    )
