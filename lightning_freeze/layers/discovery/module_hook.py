"""``layer_stack()``: the hook by which a module defines its own layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lightning_freeze.layers.discovery.module_tree import WRAPPERS

_asking: ContextVar[frozenset[int]] = ContextVar("_asking", default=frozenset())


def ask_module(module: nn.Module) -> tuple[nn.Module, Any]:
    """Ask a module, or the one that it wraps, for its layers.

    Args:
        module: The module; compiled and distributed wrappers are removed first.

    Returns:
        The module that was asked, and what its ``layer_stack()`` returned: ``None`` if it defines no such method, or
        if the call comes from that method itself.

    Raises:
        ValueError: If the method returns nothing.
    """
    owner = unwrap(module)
    method = getattr(owner, "layer_stack", None)
    if not callable(method) or isinstance(method, nn.Module):
        return owner, None
    # A wrapper may forward the call (PEFT does); the names in the result are those of the module that defines it.
    answering = getattr(method, "__self__", None)
    owner = answering if isinstance(answering, nn.Module) else owner
    if id(owner) in _asking.get():
        return owner, None
    with _guard(owner):
        answer = method()
    if answer is None:
        raise ValueError(
            f"{type(owner).__name__}.layer_stack() returned None: it must return a LayerStack, or a map from layer "
            "name to module-name prefixes."
        )
    return owner, answer


def unwrap(module: nn.Module) -> nn.Module:
    """The module inside of ``torch.compile`` and ``DistributedDataParallel`` wrappers."""
    while True:
        inner = next((module._modules[name] for name in WRAPPERS if name in module._modules), None)
        if inner is None and isinstance(module, DistributedDataParallel):
            inner = module.module
        if inner is None:
            return module
        module = inner


@contextmanager
def _guard(module: nn.Module) -> Iterator[None]:
    token = _asking.set(_asking.get() | {id(module)})
    try:
        yield
    finally:
        _asking.reset(token)
