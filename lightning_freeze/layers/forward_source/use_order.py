"""What the code of a module says about the order of its parts."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field

from lightning_freeze.layers.forward_source.expressions import Element
from lightning_freeze.layers.forward_source.scope import Scope


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
        reused: Names that are used again after something else was used.
        used_between: Step to the names that are used for the first time between its first use and its last.
        reused_in_one_run: Steps in ``used_between`` whose uses all happen in one run, not in alternative branches.
        bidirectional: Lists that one loop runs forwards and another one backwards.
        alternatives: Groups of children, one of which runs depending on the inputs.
        unresolved: Groups of lists that one loop runs in an order that the code does not determine.
        carried_over: Names that a loop uses from its second iteration on, on values of the iteration before.
        passed_lists: Child to the lists that it receives as arguments: parameter name to the name of the list.
        problem: Why the code could not be read, ``""`` if it could.
    """

    order: list[str] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)
    passes: dict[str, int] = field(default_factory=dict)
    repeated: dict[str, int] = field(default_factory=dict)
    reused: set[str] = field(default_factory=set)
    used_between: dict[str, set[str]] = field(default_factory=dict)
    reused_in_one_run: set[str] = field(default_factory=set)
    bidirectional: set[str] = field(default_factory=set)
    alternatives: set[tuple[str, ...]] = field(default_factory=set)
    unresolved: set[tuple[str, ...]] = field(default_factory=set)
    carried_over: set[str] = field(default_factory=set)
    passed_lists: dict[str, dict[str, str]] = field(default_factory=dict)
    problem: str = ""


class UseOrderBuilder:
    """The order found so far, while code is being read; the attributes are those of ``UseOrder``."""

    _scope: Scope

    def __init__(self) -> None:
        """Start with nothing used."""
        self.order: list[str] = []
        self.steps: dict[str, None] = {}
        self.passes: dict[str, int] = {}
        self.repeated: dict[str, int] = {}
        self.reused: set[str] = set()
        self.used_between: dict[str, set[str]] = {}
        self.reused_in_one_run: set[str] = set()
        self.bidirectional: set[str] = set()
        self.alternatives: set[tuple[str, ...]] = set()
        self.unresolved: set[tuple[str, ...]] = set()
        self.carried_over: set[str] = set()
        self.passed_lists: dict[str, dict[str, str]] = {}
        self._latest = ""
        self._begun: dict[str, int] = {}
        self._trace: list[str] = []
        self._begun_in_other_branch: set[str] = set()
        self._tables: set[str] = set()
        self._looped: list[set[str]] = []
        self._in_other_branch: set[str] = set()
        self._called_in_other_branch: set[tuple[str, ...]] = set()  # what another branch calls
        self._is_trial = False

    def _use(self, name: str, path: str = "") -> None:
        """Record the use of an attribute, or of one element (``path``) of the list that it is."""
        if name not in self._scope.names:
            return
        self.steps.setdefault(path or name)
        if name not in self.order:
            self.order.append(name)
        elif name != self._latest and name not in self._in_other_branch:
            self.reused.add(name)
            for step in {name, path or name} & self._begun.keys():
                self.used_between[step] = set(self.order[self._begun[step] :])
                self.reused_in_one_run |= {step} - self._begun_in_other_branch - self._tables
        self._begun.setdefault(path or name, len(self.order))
        self._trace.append(path or name)
        self._latest = name

    def _use_returned_child(self, node: ast.expr) -> bool:
        """Record the use of a child that a method returns: ``self.get_input_embeddings()(tokens)``."""
        given = self._scope.evaluate(node) if isinstance(node, ast.Call) else None
        if isinstance(given, Element):
            self._tables.add(given.path)  # what a getter returns works on the tokens; no step feeds it
            self._use(given.path.split(".")[0], given.path)
        return isinstance(given, Element)

    def _reorder(self, inside: list[str], looped: set[str]) -> None:
        within = [step for step in self.steps if step.split(".")[0] in inside]
        late = [step for step in within if step.split(".")[0] in looped]
        for step in late:
            del self.steps[step]
        self.steps.update(dict.fromkeys(late))
