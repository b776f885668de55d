"""What the names in one method of a module stand for: ``self``, its children, its settings, and local names."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from lightning_freeze.layers.forward_source.expressions import UNKNOWN, Element, Evaluation
from lightning_freeze.layers.forward_source.getters import getter_path
from lightning_freeze.layers.forward_source.syntax import WEIGHTS


class Scope:
    """The names of the method that is being read.

    Args:
        module: The module that ``self`` is.
        self_name: The name that the method gives to ``self``.
        owner: The class that defines the method; that of the module if left out.
        global_names: The global names that the method sees.

    Attributes:
        module: The module that ``self`` is.
        names: Names of its children and of its own parameters.
        self_name: The name that the method gives to ``self``.
        owner: The class that defines the method.
        bound: Local names that are known: numbers, texts, elements of lists, or lists of them.
    """

    def __init__(
        self,
        module: nn.Module,
        self_name: str = "self",
        owner: type | None = None,
        global_names: Mapping[str, Any] | None = None,
    ) -> None:
        """Start without local names."""
        self.module = module
        self.names = set(module._modules) | set(module._parameters)
        self.self_name = self_name
        self.owner = owner or type(module)
        self.bound: dict[str, Any] = {}
        self._global_names = global_names or {}

    def chain(self, node: ast.AST) -> list[str] | None:
        """``["a", "b"]`` for ``self.a.b``, ``[]`` for ``self``, else ``None``."""
        names: list[str] = []
        while isinstance(node, ast.Attribute):
            names.append(node.attr)
            node = node.value
        if not (isinstance(node, ast.Name) and node.id == self.self_name):
            return None
        first = names[-1] if names else ""
        given = None if not first or first in self.names else getter_path(self.module, first, called=False)
        return [*(given or names[-1:]), *names[-2::-1]]

    def deepest(self, chain: list[str]) -> str:
        """The part of a child that ``self.child.part`` uses, such as an embedding that runs before everything else."""
        path, module = [chain[0]], self.module._modules.get(chain[0])
        for key in chain[1:]:
            below = module._modules.get(key) if module is not None else None
            if below is None:
                break
            path, module = [*path, key], below
        return ".".join(path)

    def reads_setting(self, chain: list[str]) -> bool:
        """Whether ``self.a.b`` is a number or a text that the child keeps, or a buffer of it."""
        module: nn.Module | None = self.module
        for key in chain:
            if module is None:
                return False
            if key not in module._modules:
                known = module.__dict__.get(key, UNKNOWN)
                plain = isinstance(known, bool | int | float | str | tuple | list | dict | type(None))
                return module is not self.module and (plain or key in module._buffers)
            module = module._modules[key]
        return False

    def held_weight(self, value: ast.expr) -> Element | None:
        """The child or parameter of ``self.a.weight`` or ``self.weight``."""
        chain = self.chain(value) or []
        if len(chain) == 1 and chain[0] in self.module._parameters:
            return Element(chain[0], self.module)
        if len(chain) == 2 and chain[1] in WEIGHTS and self.module._modules.get(chain[0]) is not None:
            return Element(chain[0], self.module)
        return None

    def known(self, test: ast.expr) -> bool | None:
        """Outcome of a test on the module's own settings (``self.config.x``, ``self.norm is not None``), if certain."""
        value = self.evaluate(test) if self.bound else UNKNOWN
        if isinstance(value, bool):
            return value
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            inner = self.known(test.operand)
            return None if inner is None else not inner
        if isinstance(test, ast.Compare) and isinstance(test.comparators[0], ast.Constant):
            if test.comparators[0].value is not None or not isinstance(test.ops[0], ast.Is | ast.IsNot):
                return None
            value = self.value(test.left)
            return None if value is UNKNOWN else (value is None) == isinstance(test.ops[0], ast.Is)
        value = self.value(test)
        return value if isinstance(value, bool) else None

    def bind(self, target: ast.expr, value: Any) -> None:
        """Bind the names of a target to a value, which is unpacked if the target is a tuple."""
        if isinstance(target, ast.Name):
            self.bound[target.id] = value
        elif isinstance(target, ast.Tuple | ast.List):
            known = isinstance(value, list | tuple) and len(value) == len(target.elts)
            for position, part in enumerate(target.elts):
                self.bind(part, value[position] if known else UNKNOWN)

    def child(self, chain: Sequence[str]) -> nn.Module | None:
        """The module ``self.a.b``, ``None`` if it is none or ``self``."""
        module: nn.Module | None = self.module if chain else None
        for key in chain:
            module = module._modules.get(key) if module is not None else None
        return module

    def lists(self, node: ast.expr) -> nn.ModuleList | None:
        """The list ``self.a``, ``None`` if an expression is anything else."""
        chain = self.chain(node)
        child = self.module._modules.get(chain[0]) if chain and len(chain) == 1 else None
        return child if isinstance(child, nn.ModuleList) else None

    def function(self, node: ast.expr) -> Callable[..., Any] | None:
        """The function of a model's own code that a name stands for."""
        found = self._global_names.get(node.id) if isinstance(node, ast.Name) and node.id not in self.bound else None
        outside = ("torch.", "lightning", "pytorch_lightning")
        return found if inspect.isfunction(found) and not (found.__module__ or "").startswith(outside) else None

    def numbers(self, names: Iterable[str]) -> dict[str, int]:
        """The names that stand for a number, with the number."""
        return {name: self.bound[name] for name in names if type(self.bound.get(name)) is int}

    def forget(self, names: Iterable[str]) -> None:
        """Forget the numbers that names stand for: a branch or a loop may have changed them."""
        for name in self.numbers(names):
            del self.bound[name]

    def evaluate(self, node: ast.AST) -> Any:
        """The value of an expression, if it follows from settings, indices and module lists; else ``UNKNOWN``."""
        try:
            return Evaluation(self.chain, self.module, self.bound).value(node)
        except Exception:
            return UNKNOWN

    def value(self, node: ast.AST) -> Any:
        """What ``self.a.b`` is, if that is a child, a parameter or a plain attribute; else ``UNKNOWN``."""
        chain = self.chain(node)
        if not chain or "training" in chain:
            return UNKNOWN
        value: Any = self.module
        for name in chain:
            known = {**getattr(value, "_modules", {}), **getattr(value, "_parameters", {})}
            value = known[name] if name in known else getattr(value, "__dict__", {}).get(name, UNKNOWN)
        return value


def elements_in(value: Any) -> list[Element]:
    """All elements that a value is made of."""
    if isinstance(value, Element):
        return [value]
    return [element for part in value for element in elements_in(part)] if isinstance(value, list | tuple) else []
