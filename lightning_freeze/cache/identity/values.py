"""The contents of attributes and outputs: tensors, parts by name, and versions of tensors."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

_OWN = frozenset({*vars(nn.Module()), "forward"})


def attributes_of(module: nn.Module) -> dict[str, Any]:
    """Return the attributes of a module besides those that every module has."""
    return {name: value for name, value in vars(module).items() if name not in _OWN}


def version_of(tensor: Tensor) -> int:
    """Return how often a tensor has been written to; 0 for inference tensors, which do not count it."""
    return 0 if tensor.is_inference() else tensor._version


def tensors_in(value: Any) -> Iterable[Tensor]:
    """Yield every tensor in an output, except for key-value caches."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            if key != "past_key_values":
                yield from tensors_in(part)
    elif isinstance(value, (Sequence, deque)) and not isinstance(value, (str, bytes)):
        for part in value:
            yield from tensors_in(part)
    elif (record := record_of(value)) is not None:
        yield from tensors_in(record)


def record_of(value: Any) -> dict[str, Any] | None:
    """Return the parts of a dataclass or a namespace by name; ``None`` if the value is neither."""
    if is_dataclass(value) and not isinstance(value, type):
        own = {field.name: getattr(value, field.name, None) for field in fields(value)}  # with slots there is no dict
        return {**own, **getattr(value, "__dict__", {})}
    return vars(value) if isinstance(value, SimpleNamespace) else None
