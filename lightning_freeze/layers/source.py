"""The order in which a module's own code uses its children, read from the source and never run.

Registration order is a convention that models break freely: a final norm registered before the blocks, a head before
its encoder. The ``forward`` method says what really happens, so it is parsed. Children count in the order in which they
are evaluated; methods of the same object are followed, and branches on the module's own settings are decided.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from torch import nn

_Function = ast.FunctionDef | ast.AsyncFunctionDef

# Reading these off a child says nothing about when it runs.
_FACTS = frozenset({"dtype", "device", "shape", "config", "is_sparse", "requires_grad", "training", "in_features"})
_UNKNOWN = object()
_QUESTIONS = frozenset({"len", "isinstance", "hasattr", "id", "type"})
_FRAMEWORK = (
    "torch.nn.modules.module",
    "lightning",
    "pytorch_lightning",
    "transformers.modeling_utils",
    "transformers.generation",
    "transformers.integrations",
)


@dataclass
class UseOrder:
    """How a module's code uses what it holds.

    Attributes:
        order: Attribute names, first used first. Empty where the source cannot be read.
        passes: Attribute name to the number of times a counted loop runs it, for loops like
            ``for i in range(self.config.num_hidden_layers)`` (weights shared between depths).
        repeated: The same for names that the loop runs without an index: one module for every depth.
        again: Names that are used once more after something else was used.
    """

    order: list[str] = field(default_factory=list)
    passes: dict[str, int] = field(default_factory=dict)
    repeated: dict[str, int] = field(default_factory=dict)
    again: set[str] = field(default_factory=set)


def use_order(module: nn.Module) -> UseOrder:
    """Read the code of ``module`` for the order in which it uses its children and its own parameters.

    Args:
        module: The module; its code is parsed, not run.

    Returns:
        What the code says, starting with a LightningModule's ``training_step``, else with ``forward``.
    """
    reader = _Reader(module)
    return UseOrder(reader.order, reader.passes, reader.repeated, reader.again)


class _Reader(ast.NodeVisitor):
    """Visits code in the order in which it is evaluated."""

    def __init__(self, module: nn.Module) -> None:
        self.order: list[str] = []
        self.passes: dict[str, int] = {}
        self.repeated: dict[str, int] = {}
        self.again: set[str] = set()
        self._latest = ""
        self._module = module
        self._names = set(module._modules) | set(module._parameters)
        self._looped: list[set[str]] = []
        self._self = "self"
        self._open: set[Any] = set()
        self._class: type = type(module)
        for entry in _entries(type(module)):
            self._follow(entry, type(module))

    def _use(self, name: str) -> None:
        if name not in self._names:
            return
        if name not in self.order:
            self.order.append(name)
        elif name != self._latest:
            self.again.add(name)
        self._latest = name

    def _follow(self, name: str, start: type, skip: bool = False) -> None:
        """Read method ``name`` as found from class ``start`` on (behind it with ``skip``)."""
        mro = type(self._module).__mro__
        classes = mro[mro.index(start) + 1 :] if skip else mro
        owner = next((cls for cls in classes if name in vars(cls)), None)
        function = vars(owner)[name] if owner is not None else None
        if owner is None or not inspect.isfunction(function) or (function.__module__ or "").startswith(_FRAMEWORK):
            return
        tree = _parse(function)
        if tree is None or function in self._open or len(self._open) > 12:
            return
        before = self._self, self._class
        self._self, self._class = (tree.args.args[0].arg if tree.args.args else ""), owner
        self._open.add(function)
        self._visit_all(tree.body)
        self._open.discard(function)
        self._self, self._class = before

    def _visit_all(self, nodes: Iterable[ast.AST | None]) -> None:
        for node in nodes:
            if node is not None:
                self.visit(node)

    def _chain(self, node: ast.AST) -> list[str] | None:
        """``["a", "b"]`` for ``self.a.b``, ``[]`` for ``self``, else ``None``."""
        names: list[str] = []
        while isinstance(node, ast.Attribute):
            names.append(node.attr)
            node = node.value
        return names[::-1] if isinstance(node, ast.Name) and node.id == self._self else None

    def visit_Attribute(self, node: ast.Attribute) -> None:
        chain = self._chain(node)
        if chain is None:
            self.visit(node.value)
        elif chain and not _FACTS & set(chain[1:]):
            self._use(chain[0])

    def visit_Call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Name) and node.func.id in _QUESTIONS:
            return
        self._visit_all([*node.args, *(keyword.value for keyword in node.keywords)])
        chain = self._chain(node.func)
        if chain == []:
            self._follow("forward", type(self._module))
        elif chain and len(chain) == 1 and chain[0] not in self._names:
            self._follow(chain[0], type(self._module))
        elif _is_super(node.func):
            assert isinstance(node.func, ast.Attribute)
            self._follow(node.func.attr, self._class, skip=True)
        elif _is_getattr(node) and self._chain(node.args[0]) == []:
            self._use(str(node.args[1].value))  # type: ignore[attr-defined]
        else:
            self.visit(node.func)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        chain = self._chain(node.value)
        if chain and self._looped and chain[0] in self._names:
            self._looped[-1].add(chain[0])
        self._visit_all([node.slice, node.value])

    def visit_Assign(self, node: ast.Assign) -> None:
        self._visit_all([node.value, *node.targets])

    def visit_If(self, node: ast.If) -> None:
        known = self._known(node.test)
        self._visit_all(_running(node.test))
        self._visit_all(node.body if known is not False else [])
        self._visit_all(node.orelse if known is not True else [])

    def visit_IfExp(self, node: ast.IfExp) -> None:
        known = self._known(node.test)
        self._visit_all([*_running(node.test), node.body if known is not False else node.orelse])
        self._visit_all([node.orelse] if known is None else [])

    def _known(self, test: ast.expr) -> bool | None:
        """Outcome of a test on the module's own settings (``self.config.x``, ``self.norm is not None``), if certain."""
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            inner = self._known(test.operand)
            return None if inner is None else not inner
        if isinstance(test, ast.Compare) and isinstance(test.comparators[0], ast.Constant):
            if test.comparators[0].value is not None or not isinstance(test.ops[0], ast.Is | ast.IsNot):
                return None
            value = self._value(test.left)
            return None if value is _UNKNOWN else (value is None) == isinstance(test.ops[0], ast.Is)
        value = self._value(test)
        return value if isinstance(value, bool) else None

    def _value(self, node: ast.AST) -> Any:
        chain = self._chain(node)
        if not chain or "training" in chain:
            return _UNKNOWN
        value: Any = self._module
        for name in chain:
            known = {**getattr(value, "_modules", {}), **getattr(value, "_parameters", {})}
            value = known[name] if name in known else getattr(value, "__dict__", {}).get(name, _UNKNOWN)
        return value

    def visit_ListComp(self, node: ast.ListComp) -> None:
        self._visit_all([*node.generators, node.elt])

    visit_GeneratorExp = visit_ListComp  # type: ignore[assignment]

    def visit_For(self, node: ast.For) -> None:
        """What a loop over the blocks uses besides them is needed from the first block on: it comes before them."""
        start = len(self.order)
        looped = {chain[0] for part in ast.walk(node.iter) if (chain := self._chain(part)) and chain[0] in self._names}
        self._looped.append(looped)
        self._visit_all([node.iter, *node.body, *node.orelse])
        self._looped.pop()
        inside = self.order[start:]
        self.order[start:] = [n for n in inside if n not in looped] + [n for n in inside if n in looped]
        count = self._count(node.iter)
        if count is not None:
            self.passes.update(dict.fromkeys(looped, count))
            self.repeated.update({name: count for name in inside if name not in looped})

    def _count(self, node: ast.expr) -> int | None:
        """Evaluate ``range(self.a.b)``."""
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range"):
            return None
        if len(node.args) != 1:
            return None
        value: Any = self._module
        for name in self._chain(node.args[0]) or [""]:
            # A config may translate names (``num_hidden_layers``), so it is asked, unlike in `_value`.
            value = getattr(value, name, None)
        return value if isinstance(value, int) else None


def _entries(cls: type) -> list[str]:
    """Methods where a run begins: a LightningModule's training step, else ``forward``."""
    steps = [name for name in ("training_step", "validation_step", "predict_step") if hasattr(cls, name)]
    return [*steps[:1], "forward", *steps[1:]]


def _running(test: ast.expr) -> list[ast.expr]:
    return [test] if any(isinstance(part, ast.Call) for part in ast.walk(test)) else []


def _is_super(node: ast.expr) -> bool:
    return (
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Call)
        and isinstance(node.value.func, ast.Name)
        and node.value.func.id == "super"
    )


def _is_getattr(node: ast.Call) -> bool:
    return (
        isinstance(node.func, ast.Name)
        and node.func.id == "getattr"
        and len(node.args) >= 2
        and isinstance(node.args[1], ast.Constant)
    )


@lru_cache(maxsize=1024)
def _parse(function: Callable[..., Any]) -> _Function | None:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    except (OSError, TypeError, SyntaxError, IndexError, ValueError):
        return None
    return tree if isinstance(tree, ast.FunctionDef | ast.AsyncFunctionDef) else None
