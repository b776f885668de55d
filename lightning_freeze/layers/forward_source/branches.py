"""Reads code that branches: which branch determines the order, and how two branches are merged."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence
from copy import copy

from lightning_freeze.layers.forward_source.calls import Numbers
from lightning_freeze.layers.forward_source.syntax import assigned, ends_in_return, merge_orders, running
from lightning_freeze.layers.forward_source.use_order import UseOrderBuilder


class Branches(Numbers, UseOrderBuilder):
    """Goes through branches, and notes what they use."""

    def _visit_all(self, nodes: Iterable[ast.AST | None]) -> None:
        for node in nodes:
            if node is not None:
                self.visit(node)

    def _without_early_return(self, body: list[ast.stmt]) -> list[ast.stmt]:
        """The statements of a method without a first branch that returns early and skips steps.

        ``if plain: return self.model(x)``, and behind it ``x = self.prompt(x)`` before the same model: only the long
        branch shows where the prompt runs.
        """
        for position, node in enumerate(body):
            if not (isinstance(node, ast.If) and not node.orelse and ends_in_return(node.body)):
                continue
            chains = [chain for part in node.body for sub in ast.walk(part) if (chain := self._scope.chain(sub))]
            used = {chain[0] for chain in chains} & self._scope.names
            if used and not used & set(self.order) and self._scope.known(node.test) is None:
                order = self._trial_visit(body[position + 1 :]).order
                if not used <= set(order) or used == set(order[: len(used)]):
                    return body
                return self._without_early_return([*body[:position], *body[position + 1 :]])
        return body

    def _trial_visit(self, nodes: Sequence[ast.stmt]) -> Branches:
        """What statements use, as if nothing had been used before; the result is not recorded."""
        trial = copy(self)
        trial._is_trial = True
        trial.order, trial.steps, trial.reused, trial.bidirectional = [], {}, set(), set()
        trial.passes, trial.repeated, trial.alternatives, trial.unresolved = {}, {}, set(), set()
        trial.used_between, trial._begun, trial._trace, trial.reused_in_one_run = {}, {}, [], set()
        trial.carried_over, trial.passed_lists = set(), {}
        trial._scope = copy(self._scope)
        trial._scope.bound = dict(self._scope.bound)
        trial._looped = [set(names) for names in self._looped]
        trial._visit_all(nodes)
        return trial

    def _visit_both(self, node: ast.If) -> None:
        """Go through two branches: what one of them runs before a step that both run stands before that step."""
        known, before, outer = dict(self.steps), self._scope.numbers(self._scope.bound), self._in_other_branch
        outside, begun, whole = self._begun_in_other_branch, set(self._begun), self._called_in_other_branch
        self._called_in_other_branch = whole | self._called(node.orelse)
        self._visit_all(node.body)
        self._called_in_other_branch = whole
        elsewhere = outside | (self._begun.keys() - begun)
        self._scope.forget(assigned(node.body))
        self._scope.bound.update(before)
        first = [step for step in self.steps if step not in known]
        second = (
            [s for s in self._trial_visit(node.orelse).steps if s not in known] if first and not self._is_trial else []
        )
        self._in_other_branch = outer | {step.split(".")[0] for step in first}  # an alternative use, not another one
        self._begun_in_other_branch = elsewhere
        self._visit_all(node.orelse)
        self._in_other_branch = outer
        self._begun_in_other_branch = elsewhere if ends_in_return(node.body) else outside
        self._scope.forget(assigned([*node.body, *node.orelse]))
        steps = merge_orders(first, second)
        if set(steps) == self.steps.keys() - known.keys():
            self.steps = known | dict.fromkeys(steps)
            new = set(self.order) - {step.split(".")[0] for step in known}
            names = dict.fromkeys(step.split(".")[0] for step in steps)
            self.order = [n for n in self.order if n not in new] + [n for n in names if n in new]
            for step in steps:
                self._begun[step] = self.order.index(step.split(".")[0]) + 1

    def _called(self, nodes: Sequence[ast.stmt]) -> set[tuple[str, ...]]:
        """The paths that statements call."""
        calls = (sub.func for node in nodes for sub in ast.walk(node) if isinstance(sub, ast.Call))
        return {tuple(chain) for func in calls if (chain := self._scope.chain(func))}

    def visit_If(self, node: ast.If) -> None:
        """Take the branch that the settings decide for, else both."""
        known = self._scope.known(node.test)
        self._visit_all(running(node.test))
        if known is not None:
            self._visit_all(node.body if known else node.orelse)
        else:
            self._visit_both(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        """As for the statement."""
        known = self._scope.known(node.test)
        self._visit_all([*running(node.test), node.body if known is not False else node.orelse])
        self._visit_all([node.orelse] if known is None else [])
