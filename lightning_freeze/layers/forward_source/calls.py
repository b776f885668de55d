"""The arguments of calls in a module's code: numbers of layers, and modules."""

from __future__ import annotations

import ast
from typing import Any

from lightning_freeze.layers.forward_source.scope import Scope
from lightning_freeze.layers.forward_source.syntax import Function, assigned


def arguments_by_name(tree: Function, call: ast.Call | None, bound: bool) -> dict[str, ast.expr]:
    """The arguments of a call by the names that they have inside of the function.

    Args:
        tree: The function that is called.
        call: The call; ``None`` if there is none to look at.
        bound: Whether the first parameter is the object that the function is a method of.

    Returns:
        Parameter name to expression, without what starred arguments hold.
    """
    if call is None:
        return {}
    places = [part.arg for part in [*tree.args.posonlyargs, *tree.args.args]][bound:]
    known = {*places, *(part.arg for part in tree.args.kwonlyargs)}
    plain = next((i for i, part in enumerate(call.args) if isinstance(part, ast.Starred)), len(call.args))
    found = dict(zip(places, call.args[:plain], strict=False))
    return found | {part.arg: part.value for part in call.keywords if part.arg in known and part.arg is not None}


def integer_arguments(tree: Function, call: ast.Call | None, scope: Scope) -> dict[str, Any]:
    """The integer arguments of a call to a method of the same object."""
    values = {name: scope.evaluate(value) for name, value in arguments_by_name(tree, call, bound=True).items()}
    return {name: value for name, value in values.items() if type(value) is int}


class Numbers(ast.NodeVisitor):
    """Tracks the numbers that local names stand for, and forgets those that may have changed."""

    _scope: Scope

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        """Count on (``number += 1``), or forget a number that is changed in another way."""
        self.generic_visit(node)
        for name in self._scope.numbers(assigned([node.target])):
            value = self._scope.evaluate(ast.BinOp(ast.Name(name, ast.Load()), node.op, node.value))
            self._scope.forget([name])
            if type(value) is int:
                self._scope.bound[name] = value

    def visit_While(self, node: ast.AST) -> None:
        """Forget the numbers that these statements change, as they may run any number of times."""
        self._scope.forget(assigned([node]))
        self.generic_visit(node)
        self._scope.forget(assigned([node]))

    visit_Try = visit_Match = visit_AnnAssign = visit_NamedExpr = visit_While
