"""Which parameters a LightningModule passes to its optimizers, according to its code."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator

from torch import nn

from lightning_freeze.layers.forward_source.syntax import FRAMEWORK, parse

_DEEPEST = 4


def optimized_parameters(module: nn.Module) -> frozenset[int] | None:
    """Read ``configure_optimizers`` for the parameters that it mentions.

    Args:
        module: The module; its code is parsed, not run.

    Returns:
        ``id`` of all parameters below the children that the code mentions by name (``self.student.parameters()``).
        ``None`` if the code takes parameters in another way, so that it may be any of them.
    """
    try:
        parts = list(_parts(module, "configure_optimizers", 0))
    except (LookupError, RecursionError):
        return None
    found = {id(p) for part in parts for p in (part.parameters() if isinstance(part, nn.Module) else [part])}
    return frozenset(found) or None


def _parts(module: nn.Module, name: str, depth: int) -> Iterator[nn.Module | nn.Parameter]:
    """The children and parameters that a method mentions; ``LookupError`` if it may take any."""
    owner = next((cls for cls in type(module).__mro__ if name in vars(cls)), None)
    function = vars(owner)[name] if owner is not None else None
    tree = parse(function) if inspect.isfunction(function) else None
    if tree is None or not tree.args.args or function.__module__.startswith(FRAMEWORK) or depth > _DEEPEST:
        raise LookupError(name)
    this = tree.args.args[0].arg
    bases = {id(sub.value): sub for sub in ast.walk(tree) if isinstance(sub, ast.Attribute)}
    for sub in ast.walk(tree):
        if not (isinstance(sub, ast.Name) and sub.id == this):
            continue
        here: nn.Module = module
        node: ast.AST = sub
        while (attribute := bases.get(id(node))) is not None and here._modules.get(attribute.attr) is not None:
            here, node = here._modules[attribute.attr], attribute  # type: ignore[assignment]
        if here is not module:
            parameter = here._parameters.get(attribute.attr) if attribute is not None else None
            yield here if parameter is None else parameter
        elif attribute is None:
            raise LookupError(this)  # the module itself is passed on
        elif module._parameters.get(attribute.attr) is not None:
            yield module._parameters[attribute.attr]  # type: ignore[misc]
        else:
            yield from _of_attribute(module, attribute.attr, depth)


def _of_attribute(module: nn.Module, key: str, depth: int) -> Iterator[nn.Module | nn.Parameter]:
    """What a plain attribute or a method of the module itself mentions."""
    if key in ("hparams", "trainer"):
        return
    value = vars(module).get(key, getattr(type(module), key, None))
    if inspect.isfunction(value):
        yield from _parts(module, key, depth + 1)
    elif isinstance(value, property | list | tuple | set | nn.Module) or _may_hold_parameters(key):
        raise LookupError(key)


def _may_hold_parameters(key: str) -> bool:
    """Whether an attribute may hold parameters by its name."""
    return any(word in key.lower() for word in ("param", "model", "net", "module", "weight"))
