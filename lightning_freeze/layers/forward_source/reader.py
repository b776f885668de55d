"""The order in which a module's own code uses its children, read from the source and never run.

Registration order is a convention that models break freely: a final norm registered before the blocks, a head before
its encoder. The ``forward`` method determines what runs, so it is parsed. Children count in the order in which they are
evaluated; methods of the same object are followed, and branches on the module's own settings are decided.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from torch import nn

from lightning_freeze.errors import debugging
from lightning_freeze.layers.forward_source.branches import Branches
from lightning_freeze.layers.forward_source.calls import arguments_by_name, integer_arguments
from lightning_freeze.layers.forward_source.expressions import Either, Element
from lightning_freeze.layers.forward_source.loops import (
    changes_only,
    count_of,
    different_each_iteration,
    iterations_of,
    runs_nothing,
)
from lightning_freeze.layers.forward_source.scope import Scope, elements_in
from lightning_freeze.layers.forward_source.syntax import (
    FRAMEWORK,
    WEIGHTS,
    assigned,
    branches_after_first_iteration,
    entry_methods,
    global_names_of,
    is_getattr,
    is_metadata,
    is_super,
    names_of,
    parse,
    running,
)
from lightning_freeze.layers.forward_source.use_order import UseOrder

#: Prefix in the names of lists that a module's ``forward`` receives as arguments.
PASSED = "@"
_INSPECTION = frozenset({"len", "isinstance", "hasattr", "id", "type"})


def use_order(module: nn.Module, passed_lists: Mapping[str, nn.Module] | None = None) -> UseOrder:
    """Read the code of ``module`` for the order in which it uses its children and its own parameters.

    Args:
        module: The module; its code is parsed, not run.
        passed_lists: Lists of modules that its ``forward`` receives as arguments, by parameter name. Their elements are
            named with a leading ``PASSED``.

    Returns:
        The order in the code, starting with a LightningModule's ``training_step``, else with ``forward``. If reading it
        fails, only the problem; ``LIGHTNING_FREEZE_DEBUG=1`` raises the error instead.
    """
    try:
        found = vars(_Reader(module, passed_lists=passed_lists))
    except Exception as error:  # code may be written in any way; a failure here must not end the search for layers
        if debugging():
            raise
        return UseOrder(problem=f"{type(error).__name__}: {error}")
    noted = {part.name: found[part.name] for part in fields(UseOrder) if part.name != "problem"}
    return UseOrder(**noted | {"steps": list(found["steps"])})


class _Reader(Branches):
    """Visits code in the order of evaluation."""

    def __init__(
        self,
        module: nn.Module,
        methods: Sequence[str] = (),
        opened: set[Any] | None = None,
        passed_lists: Mapping[str, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self._held = {name: Element(PASSED + name, lists) for name, lists in (passed_lists or {}).items()}
        self._module = module
        self._scope = Scope(module)
        self._open: set[Any] = set() if opened is None else opened
        for entry in methods or entry_methods(type(module)):
            self._follow(entry, type(module))

    def _follow(self, name: str, start: type, call: ast.Call | None = None, skip: bool = False) -> None:
        """Read method ``name`` as found from class ``start`` on (behind it with ``skip``)."""
        mro = type(self._module).__mro__
        classes = mro[mro.index(start) + 1 :] if skip else mro
        owner = next((cls for cls in classes if name in vars(cls)), None)
        function = vars(owner)[name] if owner is not None else None
        if owner is None or not inspect.isfunction(function) or (function.__module__ or "").startswith(FRAMEWORK):
            return
        tree = parse(function)
        if tree is None or function in self._open or len(self._open) > 12:
            return
        before = self._scope
        self._scope = Scope(
            self._module, tree.args.args[0].arg if tree.args.args else "", owner, global_names_of(function)
        )
        self._scope.bound = integer_arguments(tree, call, before)
        if self._held and name == "forward":
            self._scope.bound.update(self._held)
            self._scope.names |= {element.path for element in self._held.values()}
        self._open.add(function)
        outside = self._begun_in_other_branch
        self._visit_all(self._without_early_return(tree.body))
        self._begun_in_other_branch = outside
        self._open.discard(function)
        self._scope = before

    def visit_Name(self, node: ast.Name) -> None:
        element = self._scope.bound.get(node.id)
        if isinstance(element, Either):
            self.alternatives.add(tuple(one.path for one in elements_in(element)))
        for one in elements_in(element) if isinstance(element, Element | Either) else ():
            self._use(one.path.split(".")[0], one.path)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        chain = self._scope.chain(node)
        if chain is None:
            inside = node.value.func if isinstance(node.value, ast.Call) else None
            element = self._scope.evaluate(node) if self._scope.bound or isinstance(inside, ast.Attribute) else None
            if isinstance(element, Element):
                self._use(element.path.split(".")[0], element.path)
            elif node.attr in WEIGHTS and self._use_returned_child(node.value):
                return
            # An in-place change of a weight (``block.out.weight.div_``) is not a step of the data flow.
            elif not node.attr.endswith("_") and not is_metadata(node.attr):
                self.visit(node.value)
        elif chain and not any(is_metadata(key) for key in chain[1:]) and not self._scope.reads_setting(chain):
            self._use(chain[0], self._scope.deepest(chain))

    def visit_Call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Name) and node.func.id in _INSPECTION:
            return
        if self._follow_function(node):
            return
        chain = self._scope.chain(node.func)
        noted = self._note_passed_lists(chain[0], node) if chain and len(chain) == 1 else []
        values = [*node.args, *(k.value for k in node.keywords)]
        if getattr(node.func, "attr", getattr(node.func, "id", "")) == "reduce":
            values.reverse()  # the initial value is computed before any element runs
        self._visit_all(value for value in values if value not in noted)
        if chain == []:
            self._follow("forward", type(self._module), node)
        elif chain and len(chain) == 1 and chain[0] not in self._scope.names:
            self._follow(chain[0], type(self._module), node)
        elif is_super(node.func):
            assert isinstance(node.func, ast.Attribute)
            self._follow(node.func.attr, self._scope.owner, node, skip=True)
        elif is_getattr(node) and self._scope.chain(node.args[0]) == []:
            self._use(str(self._scope.evaluate(node.args[1])))
        elif not self._use_returned_child(node.func) and not self._follow_child_method(chain or []):
            self.visit(node.func)

    def _follow_function(self, node: ast.Call) -> bool:
        """Read a function that receives modules: it may run them in any order."""
        function = self._scope.function(node.func)
        tree = None if function is None or function in self._open else parse(function)
        if tree is None or function is None:
            return False
        values = {
            name: self._scope.evaluate(value) for name, value in arguments_by_name(tree, node, bound=False).items()
        }
        modules = {name: value for name, value in values.items() if isinstance(value, Element)}
        if len(modules) < 2:
            return False
        others = [value for name, value in arguments_by_name(tree, node, bound=False).items() if name not in modules]
        self._visit_all([*others, *(part for part in node.args if isinstance(part, ast.Starred))])
        before = self._scope
        self._scope = Scope(self._module, "", type(self._module), global_names_of(function))
        self._scope.bound = dict(modules)
        self._open.add(function)
        self._visit_all(tree.body)
        self._open.discard(function)
        self._scope = before
        return True

    def _note_passed_lists(self, key: str, node: ast.Call) -> list[ast.expr]:
        """Record the lists that a child receives as arguments: their elements run inside the child."""
        child = self._module._modules.get(key)
        values = [*node.args, *(part.value for part in node.keywords)]
        if child is None or not any(self._scope.lists(value) for value in values):
            return []
        tree = parse(forward) if inspect.isfunction(forward := getattr(type(child), "forward", None)) else None
        given = arguments_by_name(tree, node, bound=True) if tree is not None else {}
        found = {name: part for name, value in given.items() if (part := self._scope.lists(value))}
        picked = {step.split(".")[0] for step in _Reader(child, passed_lists=found).steps if "." in step}
        passed_lists = [name for name in found if PASSED + name in picked]
        self.passed_lists.setdefault(key, {}).update(
            {name: (self._scope.chain(given[name]) or [""])[0] for name in passed_lists}
        )
        return [given[name] for name in passed_lists]

    def _follow_child_method(self, chain: list[str]) -> bool:
        """Read a method of a child (``self.child.embed(x)``): it may run a part of the child only.

        If another branch calls the child itself, that call counts instead.
        """
        child = None if tuple(chain[:-1]) in self._called_in_other_branch else self._scope.child(chain[:-1])
        if child is None or chain[-1] in child._modules or chain[-1] == "forward" or is_metadata(chain[-1]):
            return False
        steps = _Reader(child, chain[-1:], self._open).steps
        for step in steps:
            self._use(chain[0], ".".join([*chain[:-1], step]))
        return bool(steps)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        element = self._scope.evaluate(node)
        if isinstance(element, Element):
            name = element.path.split(".")[0]
            self._use(name, element.path)
            if self._looped:
                self._looped[-1].add(name)
            return
        chain = self._scope.chain(node.value)
        if chain and self._looped and chain[0] in self._scope.names and self._scope.held_weight(node.value) is None:
            self._looped[-1].add(chain[0])
        self._visit_all([node.slice, node.value])

    def visit_Assign(self, node: ast.Assign) -> None:
        value = self._scope.evaluate(node.value)
        names = [name for target in node.targets for name in names_of(target)]
        if names and elements_in(value):
            # A name for one or several elements: the use of the name counts, not the assignment.
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
        if type(value) is int and isinstance(node.targets[0], ast.Name):
            self._scope.bound[node.targets[0].id] = value

    def visit_ListComp(self, node: ast.ListComp) -> None:
        body = [node.elt, *(test for part in node.generators for test in part.ifs)]
        if not (len(node.generators) == 1 and runs_nothing(node.generators[0], body, self._scope)):
            hidden = self._scope.numbers(assigned(node.generators))
            self._scope.forget(hidden)
            self._visit_all([*node.generators, node.elt])
            self._scope.bound.update(hidden)

    visit_GeneratorExp = visit_ListComp  # type: ignore[assignment]

    def visit_For(self, node: ast.For) -> None:
        """Go through a loop.

        A loop that uses more than the elements of one list is unrolled, so that everything is placed at its
        first use. If that is not possible, everything besides the blocks counts as used from the first iteration on.
        """
        if changes_only(node) or runs_nothing(node, node.body, self._scope):
            return
        turns = iterations_of(node, self._scope)
        if turns is not None:
            looped = {e.path.split(".")[0] for turn in turns for e in elements_in(turn)}
            plain = set(self.order) - looped
            self._visit_all(running(node.iter) if not looped else [])
            kept = dict(self._scope.bound)
            numbers = [e.path.rpartition(".")[2] for turn in turns for e in elements_in(turn)]
            if len(numbers) > 1 and numbers[0].isdecimal() and numbers[-1].isdecimal():
                self.bidirectional |= looped & set(self.order) if int(numbers[0]) > int(numbers[-1]) else set()
            self._looped.append(looped)
            outer, marks = self._in_other_branch, list[int]()
            for turn in turns:
                self._in_other_branch = outer | {name for name in self.order if name not in plain}
                self._scope.bind(node.target, turn)
                marks.append(len(self._trace))
                self._visit_all(node.body)
            looped = self._looped.pop() | different_each_iteration(self._trace, marks)
            self._in_other_branch = outer
            self._scope.bound = kept
            self._scope.forget(assigned([node]))
            self._visit_all(node.orelse)
            inside = [name for name in self.order if name not in plain]
            self._note_passes(node, looped, inside)
            return
        start = len(self.order)
        for later, at_first in [] if self._is_trial else branches_after_first_iteration(node):
            used_later, used_first = (set(self._trial_visit(branch).order) for branch in (later, at_first))
            self.carried_over |= used_later - used_first - set(self.order)
        looped = {
            chain[0]
            for part in ast.walk(node.iter)
            if (chain := self._scope.chain(part)) and chain[0] in self._scope.names
        }
        self._looped.append(looped)
        self._scope.forget(assigned([node]))
        self._visit_all([node.iter, *node.body, *node.orelse])
        self._scope.forget(assigned([node]))
        self._looped.pop()
        if len(looped) > 1:
            self.unresolved.add(tuple(sorted(looped)))
        inside = self.order[start:]
        self.order[start:] = [n for n in inside if n not in looped] + [n for n in inside if n in looped]
        self._reorder(inside, looped)
        self._note_passes(node, looped, inside)

    def _note_passes(self, node: ast.For, looped: set[str], inside: list[str]) -> None:
        count = count_of(node.iter, self._scope)
        if count is not None:
            self.passes.update(dict.fromkeys(looped, count))
            self.repeated.update({name: count for name in inside if name not in looped})
