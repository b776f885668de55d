"""What modules compute with besides their weights: settings that are plain attributes, such as the active adapter."""

from __future__ import annotations

import types
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import nn

from lightning_freeze.cache.keys import new_hash

#: What every module has, and what Lightning and the stand-ins of skipped layers write to.
_OWN = frozenset({*vars(LightningModule()), "forward"})
_PLAIN = frozenset({bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size})
_CONTAINERS = frozenset({list, tuple, set, frozenset, dict})
_CODE = frozenset({types.FunctionType, types.BuiltinFunctionType, type, partial})
_MOST = 64


class Settings:
    """Reads the settings of some modules at each forward pass.

    What a module changes in its own forward pass, a counter for instance, is none of them.

    Args:
        modules: The modules.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._modules = modules
        self._counters: set[tuple[int, str]] = set()
        self._found: dict[tuple[int, str], Any] | None = None
        self._digest = b""

    def digest(self) -> bytes:
        """A hash of their present values, which depends on no process."""
        found = self._look()
        if found != self._found:
            self._found = found
            entry = new_hash()
            entry.update(repr(sorted(found.items())).encode())
            self._digest = entry.digest()
        return self._digest

    def end_pass(self) -> None:
        """A real forward pass is over: what has changed since :meth:`digest` is left out from now on."""
        now, before = self._look(), self._found or {}
        self._counters |= {key for key in now.keys() | before.keys() if now.get(key) != before.get(key)}

    def _look(self) -> dict[tuple[int, str], Any]:
        found = {
            (number, name): _shown(value)
            for number, module in enumerate(self._modules)
            for name, value in vars(module).items()
            if name not in _OWN
        }
        return {key: value for key, value in found.items() if value is not None and key not in self._counters}


def _shown(value: Any) -> str | None:
    """A value as text, ``None`` if it is no setting."""
    kind = type(value)
    if kind in _PLAIN:
        return repr(value)
    if kind in _CONTAINERS and len(value) <= _MOST:
        parts = [*value.items()] if kind is dict else sorted(value, key=repr) if "set" in kind.__name__ else value
        shown = [_shown(part) for part in parts]
        return None if None in shown else f"{kind.__name__}{shown}"
    return _named(value) if kind in _CODE else None


def _named(code: Any) -> str:
    if isinstance(code, partial):
        return f"{_named(code.func)}{_shown(code.args)}{_shown(code.keywords)}"
    body = getattr(code, "__code__", None)  # what a lambda does is not in its name
    return (
        f"{getattr(code, '__module__', '')}.{getattr(code, '__qualname__', code)} {body.co_code.hex() if body else ''}"
    )
