"""Follows the values in a module's code from call to call; nothing is run."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from lightning_freeze.errors import debugging
from lightning_freeze.layers.forward_source.scope import Scope
from lightning_freeze.layers.forward_source.syntax import FRAMEWORK, global_names_of, parse
from lightning_freeze.layers.forward_source.value_flow.flow import INPUT, ValueFlow, union
from lightning_freeze.layers.forward_source.value_flow.part_calls import FlowCalls, find_method, tree_of
from lightning_freeze.layers.forward_source.value_flow.state import name_of
from lightning_freeze.layers.forward_source.value_flow.values import Value, merged

_WITHOUT_GRADIENT = frozenset({"no_grad", "inference_mode"})
_DEEPEST = 12


def value_flow(module: nn.Module) -> ValueFlow:
    """Read which parts of a module feed which.

    Args:
        module: The module; its code is parsed, not run.

    Returns:
        The flow in the code of a LightningModule's ``training_step`` if there is one, else of ``forward``. It is
        empty where the code cannot be followed; ``LIGHTNING_FREEZE_DEBUG=1`` raises the error instead.
    """
    try:
        return _flow_of(module)
    except Exception:  # code may be written in any way; without a result, the order of the layers is used
        if debugging():
            raise
        return ValueFlow()


def _flow_of(module: nn.Module) -> ValueFlow:
    for entry in ("training_step", "forward"):
        reader = _Interpreter(module)
        value = reader.call_method(entry, type(module), reader.inputs(entry))
        if reader.flow.calls:
            returned = value.all_sources if value is not None else frozenset()
            reader.flow.returned, reader.flow.returns_input = returned - {INPUT}, INPUT in returned
            return reader.flow
    return ValueFlow()


class _Interpreter(FlowCalls):
    """Follows statements; ``_do_`` and the name of the syntax names the method."""

    def inputs(self, entry: str) -> dict[str, Value]:
        """The arguments of the method where reading begins."""
        tree = tree_of(self._module, entry, type(self._module))
        arguments = tree.args if tree is not None else None
        names = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs][1:] if arguments is not None else []
        return {argument.arg: Value(frozenset({INPUT})) for argument in names}

    def call_method(self, name: str, start: type, given: Mapping[str, Value], skip: bool = False) -> Value | None:
        """Follow a method of the module, ``None`` if its source is not to be read."""
        found = find_method(self._module, name, start, skip)
        if found is None or (found[1].__module__ or "").startswith(FRAMEWORK):
            return None
        owner, function = found
        tree = parse(function)
        if tree is None or function in self._open or len(self._open) > _DEEPEST:
            return None
        self_name = tree.args.args[0].arg if tree.args.args else ""
        before = self._scope, self._names, self._functions
        self._scope = Scope(self._module, self_name, owner, global_names_of(function))
        self._names, self._functions = dict(given), {}
        self._open.append(function)
        quiet = any(map(_stops_gradient, tree.decorator_list))
        value = self._body(tree.body, quiet)
        self._open.pop()
        self._scope, self._names, self._functions = before
        return value

    def _body(self, statements: Sequence[ast.stmt], quiet: bool = False) -> Value:
        """Follow the statements of a function; returns what it returns."""
        before, self._returned = self._returned, []
        self._without_gradient += quiet
        self._run(statements)
        self._without_gradient -= quiet
        returned, self._returned = self._returned, before
        return merged(returned)

    def _run(self, statements: Iterable[ast.AST]) -> None:
        for statement in statements:
            handler = getattr(self, f"_do_{type(statement).__name__.lower()}", None)
            if handler is not None:
                handler(statement)
            else:
                for child in ast.iter_child_nodes(statement):
                    self._run([child]) if isinstance(child, ast.stmt) else self._value(child)

    def _do_return(self, node: ast.Return) -> None:
        self._returned.append(self._value(node.value))

    def _do_assign(self, node: ast.Assign) -> None:
        value = self._value(node.value)
        for target in node.targets:
            self._bind(target, value)

    def _do_annassign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self._bind(node.target, self._value(node.value))

    def _do_augassign(self, node: ast.AugAssign) -> None:
        sources = union([self._value(node.target).all_sources, self._value(node.value).all_sources])
        self._bind(node.target, Value(sources))

    def _do_functiondef(self, node: ast.FunctionDef) -> None:
        self._functions[node.name] = node

    _do_asyncfunctiondef = _do_functiondef

    def _do_classdef(self, node: ast.ClassDef) -> None:
        """A class defined within a method says nothing about the flow."""

    def _do_if(self, node: ast.If) -> None:
        known = self._known(node.test)
        self._value(node.test)
        if known is not None:
            self._run(node.body if known else node.orelse)
            return
        names, outer = dict(self._names), self._branch
        self._branch = (*outer, (id(node), 0))
        self._run(node.body)
        first = self._names
        self._names, self._branch = dict(names), (*outer, (id(node), 1))
        self._run(node.orelse)
        self._branch = outer
        self._join(first)

    def _do_for(self, node: ast.For) -> None:
        over = self._value(node.iter)
        # If the single elements are not known, two iterations show what one of them feeds in the next.
        turns = over.items if over.items is not None else (over.iterate(),) * 2
        for value in turns:
            before = dict(self._names)
            self._bind(node.target, value)
            self._run(node.body)
            if over.items is None:
                self._join(before)
        self._run(node.orelse)

    _do_asyncfor = _do_for

    def _do_while(self, node: ast.While) -> None:
        for _ in range(2):
            before = dict(self._names)
            self._value(node.test)
            self._run(node.body)
            self._join(before)
        self._run(node.orelse)

    def _do_with(self, node: ast.With) -> None:
        quiet = False
        for item in node.items:
            quiet = quiet or _stops_gradient(item.context_expr)
            value = self._value(item.context_expr)
            if item.optional_vars is not None:
                self._bind(item.optional_vars, value)
        self._without_gradient += quiet
        self._run(node.body)
        self._without_gradient -= quiet

    _do_asyncwith = _do_with

    def _do_match(self, node: ast.Match) -> None:
        self._value(node.subject)
        names, outer, ends = dict(self._names), self._branch, []
        for number, case in enumerate(node.cases):
            self._names, self._branch = dict(names), (*outer, (id(node), number))
            self._run(case.body)
            ends.append(self._names)
        self._names, self._branch = names, outer
        for end in ends:
            self._join(end)


def _stops_gradient(context: ast.expr) -> bool:
    """Whether autograd records nothing in a context."""
    if name_of(context) != "set_grad_enabled":
        return name_of(context) in _WITHOUT_GRADIENT
    mode = context.args[0] if isinstance(context, ast.Call) and context.args else None
    return isinstance(mode, ast.Constant) and mode.value is False
