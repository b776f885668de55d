"""The order in which a module's own code uses its children, read from the source and never run.

Registration order is a convention that models break freely: a final norm registered before the blocks, a head before
its encoder. The ``forward`` method says what really happens, so it is parsed. Children count in the order in which they
are evaluated; methods of the same object are followed, and branches on the module's own settings are decided.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from lightning_freeze.layers.evaluate import UNKNOWN, Element, Evaluation, items_of
from lightning_freeze.layers.syntax import (
    WEIGHTS,
    entries,
    is_fact,
    is_getattr,
    is_super,
    looks_inside,
    names_of,
    of_weight,
    only_looks,
    parse,
    running,
)

_LONGEST = 256
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
        steps: The same in more detail: where a loop uses more than the elements of one list, each element stands on
            its own (``"blocks.0"``, ``"norms.0"``, ``"blocks.1"``).
        passes: Attribute name to the number of times a counted loop runs it, for loops like
            ``for i in range(self.config.num_hidden_layers)`` (weights shared between depths).
        repeated: The same for names that the loop runs without an index: one module for every depth.
        again: Names that are used once more after something else was used.
        both_ways: Lists that one loop runs forwards and another one backwards.
    """

    order: list[str] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)
    passes: dict[str, int] = field(default_factory=dict)
    repeated: dict[str, int] = field(default_factory=dict)
    again: set[str] = field(default_factory=set)
    both_ways: set[str] = field(default_factory=set)


def use_order(module: nn.Module) -> UseOrder:
    """Read the code of ``module`` for the order in which it uses its children and its own parameters.

    Args:
        module: The module; its code is parsed, not run.

    Returns:
        What the code says, starting with a LightningModule's ``training_step``, else with ``forward``.
    """
    reader = _Reader(module)
    return UseOrder(reader.order, list(reader.steps), reader.passes, reader.repeated, reader.again, reader.both_ways)


class _Reader(ast.NodeVisitor):
    """Visits code in the order in which it is evaluated."""

    def __init__(self, module: nn.Module) -> None:
        self.order: list[str] = []
        self.steps: dict[str, None] = {}
        self.passes: dict[str, int] = {}
        self.repeated: dict[str, int] = {}
        self.again: set[str] = set()
        self.both_ways: set[str] = set()
        self._latest = ""
        self._module = module
        self._names = set(module._modules) | set(module._parameters)
        self._looped: list[set[str]] = []
        self._bound: dict[str, Any] = {}
        self._fresh: set[str] = set()
        self._self = "self"
        self._open: set[Any] = set()
        self._class: type = type(module)
        for entry in entries(type(module)):
            self._follow(entry, type(module))

    def _use(self, name: str, path: str = "") -> None:
        """Note the use of an attribute, or of one element (``path``) of the list that it is."""
        if name not in self._names:
            return
        self.steps.setdefault(path or name)
        if name not in self.order:
            self.order.append(name)
        elif name != self._latest and name not in self._fresh:
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
        tree = parse(function)
        if tree is None or function in self._open or len(self._open) > 12:
            return
        before = self._self, self._class, self._bound
        self._self, self._class, self._bound = (tree.args.args[0].arg if tree.args.args else ""), owner, {}
        self._open.add(function)
        self._visit_all(tree.body)
        self._open.discard(function)
        self._self, self._class, self._bound = before

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

    def visit_Name(self, node: ast.Name) -> None:
        element = self._bound.get(node.id)
        if isinstance(element, Element):
            self._use(element.path.split(".")[0], element.path)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        chain = self._chain(node)
        if chain is None:
            element = self._evaluate(node) if self._bound else None
            if isinstance(element, Element):
                self._use(element.path.split(".")[0], element.path)
            # An in-place change of a weight (``block.out.weight.div_``) is no step of the data flow.
            elif not node.attr.endswith("_") and not is_fact(node.attr):
                self.visit(node.value)
        elif chain and not any(is_fact(key) for key in chain[1:]) and not self._reads_setting(chain):
            self._use(chain[0], self._deepest(chain))

    def _deepest(self, chain: list[str]) -> str:
        """The part of a child that ``self.child.part`` uses: code may embed its tokens before all else runs."""
        path, module = [chain[0]], self._module._modules.get(chain[0])
        for key in chain[1:]:
            below = module._modules.get(key) if module is not None else None
            if below is None:
                break
            path, module = [*path, key], below
        return ".".join(path)

    def _reads_setting(self, chain: list[str]) -> bool:
        """Whether ``self.a.b`` is a number or a text that the child keeps, or a buffer of it."""
        module: nn.Module | None = self._module
        for key in chain:
            if module is None:
                return False
            if key not in module._modules:
                known = module.__dict__.get(key, UNKNOWN)
                plain = isinstance(known, bool | int | float | str | tuple | list | dict | type(None))
                return module is not self._module and (plain or key in module._buffers)
            module = module._modules[key]
        return False

    def visit_Call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Name) and node.func.id in _QUESTIONS:
            return
        self._visit_all([*node.args, *(keyword.value for keyword in node.keywords)])
        chain = self._chain(node.func)
        if chain == []:
            self._follow("forward", type(self._module))
        elif chain and len(chain) == 1 and chain[0] not in self._names:
            self._follow(chain[0], type(self._module))
        elif is_super(node.func):
            assert isinstance(node.func, ast.Attribute)
            self._follow(node.func.attr, self._class, skip=True)
        elif is_getattr(node) and self._chain(node.args[0]) == []:
            self._use(str(self._evaluate(node.args[1])))
        else:
            self.visit(node.func)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        element = self._evaluate(node)
        if isinstance(element, Element):
            name = element.path.split(".")[0]
            self._use(name, element.path)
            if self._looped:
                self._looped[-1].add(name)
            return
        chain = self._chain(node.value)
        if chain and self._looped and chain[0] in self._names:
            self._looped[-1].add(chain[0])
        self._visit_all([node.slice, node.value])

    def visit_Assign(self, node: ast.Assign) -> None:
        value = self._evaluate(node.value)
        names = [name for target in node.targets for name in names_of(target)]
        if names and _elements(value):
            # A name for an element, or for several: its use counts, not its naming.
            for target in node.targets:
                self._bind(target, value)
            if self._looped:
                self._looped[-1].update(element.path.split(".")[0] for element in _elements(value))
            return
        held = self._held_weight(node.value)
        if held is not None and isinstance(node.targets[0], ast.Name):
            self._bound[node.targets[0].id] = held  # a name for a weight: it is used where the name is
            return
        for name in names:
            self._bound.pop(name, None)
        self._visit_all([node.value, *node.targets])

    def _held_weight(self, value: ast.expr) -> Element | None:
        """The child or parameter of ``self.a.weight`` or ``self.weight``."""
        chain = self._chain(value) or []
        if len(chain) == 1 and chain[0] in self._module._parameters:
            return Element(chain[0], self._module)
        if len(chain) == 2 and chain[1] in WEIGHTS and self._module._modules.get(chain[0]) is not None:
            return Element(chain[0], self._module)
        return None

    def visit_If(self, node: ast.If) -> None:
        known = self._known(node.test)
        self._visit_all(running(node.test))
        self._visit_all(node.body if known is not False else [])
        self._visit_all(node.orelse if known is not True else [])

    def visit_IfExp(self, node: ast.IfExp) -> None:
        known = self._known(node.test)
        self._visit_all([*running(node.test), node.body if known is not False else node.orelse])
        self._visit_all([node.orelse] if known is None else [])

    def _known(self, test: ast.expr) -> bool | None:
        """Outcome of a test on the module's own settings (``self.config.x``, ``self.norm is not None``), if certain."""
        value = self._evaluate(test) if self._bound else UNKNOWN
        if isinstance(value, bool):
            return value
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            inner = self._known(test.operand)
            return None if inner is None else not inner
        if isinstance(test, ast.Compare) and isinstance(test.comparators[0], ast.Constant):
            if test.comparators[0].value is not None or not isinstance(test.ops[0], ast.Is | ast.IsNot):
                return None
            value = self._value(test.left)
            return None if value is UNKNOWN else (value is None) == isinstance(test.ops[0], ast.Is)
        value = self._value(test)
        return value if isinstance(value, bool) else None

    def _turns(self, node: ast.For) -> list[Any] | None:
        """What the target of a loop stands for in each turn; ``None`` if unknown, or if there is no need to know."""
        turns = items_of(self._evaluate(node.iter))
        if turns is None or len(turns) > _LONGEST:
            return None
        lists = {e.path.rpartition(".")[0] for turn in turns for e in _elements(turn)}
        chains = [chain for part in node.body for sub in ast.walk(part) if (chain := self._chain(sub))]
        more = len(lists) > 1 or any(chain[0] in self._names for chain in chains) or looks_inside(node)
        nested = any(isinstance(sub, ast.For) for part in node.body for sub in ast.walk(part)) and self._bound
        ordered = [e.path for turn in turns for e in _elements(turn)]
        plain = not (more or nested) and ordered == self._all_of(lists)
        return None if plain or not (lists or more) else list(turns)

    def _all_of(self, lists: set[str]) -> list[str]:
        """Paths of all elements of a list, in registration order."""
        path = next(iter(lists), "")
        if "." in path or path not in self._module._modules:
            return []
        return [f"{path}.{key}" for key in self._module._modules[path]._modules]  # type: ignore[union-attr]

    def _changes_only(self, node: ast.For) -> bool:
        """Whether a loop only changes weights in place: its target is never called and never passed on."""
        names = {s.id for s in ast.walk(node.target) if isinstance(s, ast.Name)}
        inside = [s for part in node.body for s in ast.walk(part)]
        bases = [s.value for s in inside if isinstance(s, ast.Attribute)]
        uses = [s for s in inside if isinstance(s, ast.Name) and s.id in names]
        held = {s.id for s in bases if isinstance(s, ast.Name)} & names
        changes = (s.func for s in inside if isinstance(s, ast.Call) and isinstance(s.func, ast.Attribute))
        return any(f.attr.endswith("_") and of_weight(f.value) for f in changes) and all(
            use in bases for use in uses if use.id in held
        )

    def _only_looks(self, loop: ast.For | ast.comprehension, body: Sequence[ast.AST]) -> bool:
        """Whether a loop looks at modules and runs nothing, neither these nor others."""
        chains = [chain for part in body for sub in ast.walk(part) if (chain := self._chain(sub)) is not None]
        others = (chain for chain in chains if chain and not chain[0].startswith(("log", "print")))
        return only_looks(loop.target, loop.iter, body) and not any(others)

    def _bind(self, target: ast.expr, value: Any) -> None:
        if isinstance(target, ast.Name):
            self._bound[target.id] = value
        elif isinstance(target, ast.Tuple | ast.List):
            known = isinstance(value, list | tuple) and len(value) == len(target.elts)
            for position, part in enumerate(target.elts):
                self._bind(part, value[position] if known else UNKNOWN)

    def _evaluate(self, node: ast.AST) -> Any:
        """The value of an expression in a loop, as far as it follows from settings, indices and module lists."""
        try:
            return Evaluation(self._chain, self._module, self._bound).value(node)
        except Exception:
            return UNKNOWN

    def _value(self, node: ast.AST) -> Any:
        chain = self._chain(node)
        if not chain or "training" in chain:
            return UNKNOWN
        value: Any = self._module
        for name in chain:
            known = {**getattr(value, "_modules", {}), **getattr(value, "_parameters", {})}
            value = known[name] if name in known else getattr(value, "__dict__", {}).get(name, UNKNOWN)
        return value

    def visit_ListComp(self, node: ast.ListComp) -> None:
        body = [node.elt, *(test for part in node.generators for test in part.ifs)]
        if not (len(node.generators) == 1 and self._only_looks(node.generators[0], body)):
            self._visit_all([*node.generators, node.elt])

    visit_GeneratorExp = visit_ListComp  # type: ignore[assignment]

    def visit_For(self, node: ast.For) -> None:
        """Go through a loop.

        A loop that uses more than the elements of one list is unrolled, so that everything stands where it is used
        first. Where that is not possible, what it uses besides the blocks is taken to be needed from the first on.
        """
        if self._changes_only(node) or self._only_looks(node, node.body):
            return
        turns = self._turns(node)
        if turns is not None:
            looped = {e.path.split(".")[0] for turn in turns for e in _elements(turn)}
            plain = set(self.order) - looped
            self._visit_all(running(node.iter) if not looped else [])
            kept = dict(self._bound)
            numbers = [e.path.rpartition(".")[2] for turn in turns for e in _elements(turn)]
            if len(numbers) > 1 and numbers[0].isdecimal() and numbers[-1].isdecimal():
                self.both_ways |= looped & set(self.order) if int(numbers[0]) > int(numbers[-1]) else set()
            self._looped.append(looped)
            outer = self._fresh
            for turn in turns:
                self._fresh = outer | {name for name in self.order if name not in plain}
                self._bind(node.target, turn)
                self._visit_all(node.body)
            looped = self._looped.pop()
            self._fresh = outer
            self._bound = kept
            self._visit_all(node.orelse)
            inside = [name for name in self.order if name not in plain]
            self._note_passes(node, looped, inside)
            return
        start = len(self.order)
        looped = {chain[0] for part in ast.walk(node.iter) if (chain := self._chain(part)) and chain[0] in self._names}
        self._looped.append(looped)
        self._visit_all([node.iter, *node.body, *node.orelse])
        self._looped.pop()
        inside = self.order[start:]
        self.order[start:] = [n for n in inside if n not in looped] + [n for n in inside if n in looped]
        self._reorder(inside, looped)
        self._note_passes(node, looped, inside)

    def _reorder(self, inside: list[str], looped: set[str]) -> None:
        within = [step for step in self.steps if step.split(".")[0] in inside]
        late = [step for step in within if step.split(".")[0] in looped]
        for step in late:
            del self.steps[step]
        self.steps.update(dict.fromkeys(late))

    def _note_passes(self, node: ast.For, looped: set[str], inside: list[str]) -> None:
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


def _elements(value: Any) -> list[Element]:
    if isinstance(value, Element):
        return [value]
    return [element for part in value for element in _elements(part)] if isinstance(value, list | tuple) else []
