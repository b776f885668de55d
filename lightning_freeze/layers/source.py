"""The order in which a module's own code uses its children, read from the source and never run.

Registration order is a convention that models break freely: a final norm registered before the blocks, a head before
its encoder. The ``forward`` method says what really happens, so it is parsed. Children count in the order in which they
are evaluated; methods of the same object are followed, and branches on the module's own settings are decided.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass, field, fields
from typing import Any

from torch import nn

from lightning_freeze.layers.evaluate import Either, Element
from lightning_freeze.layers.loops import changes_only, count_of, runs_nothing, turns_of
from lightning_freeze.layers.scope import Scope, elements_in
from lightning_freeze.layers.syntax import entries, is_fact, is_getattr, is_super, leaves, names_of, parse, running

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
        either: Groups of children of which the inputs choose one.
        unfollowed: Groups of lists that one loop runs in a way that the code does not tell.
    """

    order: list[str] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)
    passes: dict[str, int] = field(default_factory=dict)
    repeated: dict[str, int] = field(default_factory=dict)
    again: set[str] = field(default_factory=set)
    both_ways: set[str] = field(default_factory=set)
    either: set[tuple[str, ...]] = field(default_factory=set)
    unfollowed: set[tuple[str, ...]] = field(default_factory=set)


def use_order(module: nn.Module) -> UseOrder:
    """Read the code of ``module`` for the order in which it uses its children and its own parameters.

    Args:
        module: The module; its code is parsed, not run.

    Returns:
        What the code says, starting with a LightningModule's ``training_step``, else with ``forward``.
    """
    found = vars(_Reader(module))
    return UseOrder(**{part.name: found[part.name] for part in fields(UseOrder)} | {"steps": list(found["steps"])})


class _Reader(ast.NodeVisitor):
    """Visits code in the order in which it is evaluated."""

    def __init__(self, module: nn.Module) -> None:
        self.order: list[str] = []
        self.steps: dict[str, None] = {}
        self.passes: dict[str, int] = {}
        self.repeated: dict[str, int] = {}
        self.again: set[str] = set()
        self.both_ways: set[str] = set()
        self.either: set[tuple[str, ...]] = set()
        self.unfollowed: set[tuple[str, ...]] = set()
        self._latest = ""
        self._module = module
        self._scope = Scope(module)
        self._looped: list[set[str]] = []
        self._fresh: set[str] = set()
        self._open: set[Any] = set()
        for entry in entries(type(module)):
            self._follow(entry, type(module))

    def _use(self, name: str, path: str = "") -> None:
        """Note the use of an attribute, or of one element (``path``) of the list that it is."""
        if name not in self._scope.names:
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
        before = self._scope
        self._scope = Scope(self._module, tree.args.args[0].arg if tree.args.args else "", owner)
        self._open.add(function)
        self._visit_all(self._without_short_cut(tree.body))
        self._open.discard(function)
        self._scope = before

    def _without_short_cut(self, body: list[ast.stmt]) -> list[ast.stmt]:
        """The statements of a method, less a first branch that leaves it early and leaves out steps.

        ``if plain: return self.model(x)``, and behind it ``x = self.prompt(x)`` before the same model: only the long
        way tells where the prompt runs.
        """
        for position, node in enumerate(body):
            if not (isinstance(node, ast.If) and not node.orelse and leaves(node.body)):
                continue
            chains = [chain for part in node.body for sub in ast.walk(part) if (chain := self._scope.chain(sub))]
            used = {chain[0] for chain in chains} & self._scope.names
            if len(used) == 1 and not used & set(self.order) and self._scope.known(node.test) is None:
                first = self._first_of(body[position + 1 :], used)
                return body if first else [*body[:position], *body[position + 1 :]]
        return body

    def _first_of(self, rest: Sequence[ast.stmt], used: set[str]) -> bool:
        """Whether the rest of a method does not use these names, or uses them before any other."""
        trial = copy(self)
        trial.order, trial.steps, trial.again, trial.both_ways = [], {}, set(), set()
        trial.passes, trial.repeated, trial.either, trial.unfollowed = {}, {}, set(), set()
        trial._scope = copy(self._scope)
        trial._scope.bound = dict(self._scope.bound)
        trial._visit_all(rest)
        return not used & set(trial.order) or trial.order[0] in used

    def _visit_all(self, nodes: Iterable[ast.AST | None]) -> None:
        for node in nodes:
            if node is not None:
                self.visit(node)

    def visit_Name(self, node: ast.Name) -> None:
        element = self._scope.bound.get(node.id)
        if isinstance(element, Either):
            self.either.add(tuple(one.path for one in elements_in(element)))
        for one in elements_in(element) if isinstance(element, Element | Either) else ():
            self._use(one.path.split(".")[0], one.path)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        chain = self._scope.chain(node)
        if chain is None:
            element = self._scope.evaluate(node) if self._scope.bound else None
            if isinstance(element, Element):
                self._use(element.path.split(".")[0], element.path)
            # An in-place change of a weight (``block.out.weight.div_``) is no step of the data flow.
            elif not node.attr.endswith("_") and not is_fact(node.attr):
                self.visit(node.value)
        elif chain and not any(is_fact(key) for key in chain[1:]) and not self._scope.reads_setting(chain):
            self._use(chain[0], self._scope.deepest(chain))

    def visit_Call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Name) and node.func.id in _QUESTIONS:
            return
        self._visit_all([*node.args, *(keyword.value for keyword in node.keywords)])
        chain = self._scope.chain(node.func)
        if chain == []:
            self._follow("forward", type(self._module))
        elif chain and len(chain) == 1 and chain[0] not in self._scope.names:
            self._follow(chain[0], type(self._module))
        elif is_super(node.func):
            assert isinstance(node.func, ast.Attribute)
            self._follow(node.func.attr, self._scope.owner, skip=True)
        elif is_getattr(node) and self._scope.chain(node.args[0]) == []:
            self._use(str(self._scope.evaluate(node.args[1])))
        else:
            self.visit(node.func)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        element = self._scope.evaluate(node)
        if isinstance(element, Element):
            name = element.path.split(".")[0]
            self._use(name, element.path)
            if self._looped:
                self._looped[-1].add(name)
            return
        chain = self._scope.chain(node.value)
        if chain and self._looped and chain[0] in self._scope.names:
            self._looped[-1].add(chain[0])
        self._visit_all([node.slice, node.value])

    def visit_Assign(self, node: ast.Assign) -> None:
        value = self._scope.evaluate(node.value)
        names = [name for target in node.targets for name in names_of(target)]
        if names and elements_in(value):
            # A name for an element, or for several: its use counts, not its naming.
            for target in node.targets:
                self._scope.bind(target, value)
            if self._looped:
                self._looped[-1].update(element.path.split(".")[0] for element in elements_in(value))
            return
        held = self._scope.held_weight(node.value)
        if held is not None and isinstance(node.targets[0], ast.Name):
            self._scope.bound[node.targets[0].id] = held  # a name for a weight: it is used where the name is
            return
        for name in names:
            self._scope.bound.pop(name, None)
        self._visit_all([node.value, *node.targets])

    def visit_If(self, node: ast.If) -> None:
        known = self._scope.known(node.test)
        self._visit_all(running(node.test))
        self._visit_all(node.body if known is not False else [])
        self._visit_all(node.orelse if known is not True else [])

    def visit_IfExp(self, node: ast.IfExp) -> None:
        known = self._scope.known(node.test)
        self._visit_all([*running(node.test), node.body if known is not False else node.orelse])
        self._visit_all([node.orelse] if known is None else [])

    def visit_ListComp(self, node: ast.ListComp) -> None:
        body = [node.elt, *(test for part in node.generators for test in part.ifs)]
        if not (len(node.generators) == 1 and runs_nothing(node.generators[0], body, self._scope)):
            self._visit_all([*node.generators, node.elt])

    visit_GeneratorExp = visit_ListComp  # type: ignore[assignment]

    def visit_For(self, node: ast.For) -> None:
        """Go through a loop.

        A loop that uses more than the elements of one list is unrolled, so that everything stands where it is used
        first. Where that is not possible, what it uses besides the blocks is taken to be needed from the first on.
        """
        if changes_only(node) or runs_nothing(node, node.body, self._scope):
            return
        turns = turns_of(node, self._scope)
        if turns is not None:
            looped = {e.path.split(".")[0] for turn in turns for e in elements_in(turn)}
            plain = set(self.order) - looped
            self._visit_all(running(node.iter) if not looped else [])
            kept = dict(self._scope.bound)
            numbers = [e.path.rpartition(".")[2] for turn in turns for e in elements_in(turn)]
            if len(numbers) > 1 and numbers[0].isdecimal() and numbers[-1].isdecimal():
                self.both_ways |= looped & set(self.order) if int(numbers[0]) > int(numbers[-1]) else set()
            self._looped.append(looped)
            outer = self._fresh
            for turn in turns:
                self._fresh = outer | {name for name in self.order if name not in plain}
                self._scope.bind(node.target, turn)
                self._visit_all(node.body)
            looped = self._looped.pop()
            self._fresh = outer
            self._scope.bound = kept
            self._visit_all(node.orelse)
            inside = [name for name in self.order if name not in plain]
            self._note_passes(node, looped, inside)
            return
        start = len(self.order)
        looped = {
            chain[0]
            for part in ast.walk(node.iter)
            if (chain := self._scope.chain(part)) and chain[0] in self._scope.names
        }
        self._looped.append(looped)
        self._visit_all([node.iter, *node.body, *node.orelse])
        self._looped.pop()
        if len(looped) > 1:
            self.unfollowed.add(tuple(sorted(looped)))
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
        count = count_of(node.iter, self._scope)
        if count is not None:
            self.passes.update(dict.fromkeys(looped, count))
            self.repeated.update({name: count for name in inside if name not in looped})
