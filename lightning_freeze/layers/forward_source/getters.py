"""Properties and methods that only return a part of their object (``get_input_embeddings``)."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from torch import nn

from lightning_freeze.layers.forward_source.syntax import parse

_ACCESSORS = frozenset({"get_input_embeddings", "get_output_embeddings"})
_DEPTH = 8


def getter_path(module: nn.Module, name: str, called: bool, depth: int = 0) -> list[str] | None:
    """The path of the child that ``module.name`` or ``module.name()`` stands for.

    Args:
        module: The object.
        name: The property or the method.
        called: Whether it is called, as a method is.
        depth: Number of nested calls that led here.

    Returns:
        Names from ``module`` down to the child; ``None`` if it is no such property or method.
    """
    if depth > _DEPTH or name in module._modules or name in module.__dict__:
        return None
    found = next((vars(cls)[name] for cls in type(module).__mro__ if name in vars(cls)), None)
    function = found.fget if isinstance(found, property) else found
    if not inspect.isfunction(function) or called == isinstance(found, property):
        return None
    if function.__module__ == "transformers.modeling_utils":
        # It looks for the table in many places, so it is called: it runs no code of a layer.
        return _call_accessor(module, name) if name in _ACCESSORS else None
    path: list[str] = []
    here = module
    for key, is_call in _returned(function) or ():
        below = here._modules.get(key)
        part = [key] if below is not None and not is_call else getter_path(here, key, is_call, depth + 1)
        for step in part or ():
            here = here._modules[step]  # type: ignore[assignment]
        if not part:
            return None
        path += part
    return path or None


def _call_accessor(module: nn.Module, name: str) -> list[str] | None:
    try:
        wanted = getattr(module, name)()
    except Exception:
        return None
    if not isinstance(wanted, nn.Module) or wanted is module:
        return None
    return next((path.split(".") for path, one in module.named_modules() if one is wanted), None)


@lru_cache(maxsize=1024)
def _returned(function: Callable[..., Any]) -> list[tuple[str, bool]] | None:
    """``[("a", False), ("get", True)]`` for a function that is only ``return self.a.get()``."""
    tree = parse(function)
    if tree is None or len(tree.args.args) != 1:
        return None
    body = [part for part in tree.body if not (isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant))]
    node = body[0].value if len(body) == 1 and isinstance(body[0], ast.Return) else None
    keys: list[tuple[str, bool]] = []
    while isinstance(node, ast.Attribute | ast.Call):
        called = isinstance(node, ast.Call)
        if isinstance(node, ast.Call):
            if node.args or node.keywords or not isinstance(node.func, ast.Attribute):
                return None
            node = node.func
        keys.append((node.attr, called))
        node = node.value
    return keys[::-1] if isinstance(node, ast.Name) and node.id == tree.args.args[0].arg else None
