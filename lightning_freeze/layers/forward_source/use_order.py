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
        again: Names that are used once more after something else was used.
        meanwhile: Step to the names that are used for the first time between its first use and its last.
        both_times: Steps in ``meanwhile`` of which one run makes both uses: they are no branches of one choice.
        both_ways: Lists that one loop runs forwards and another one backwards.
        either: Groups of children of which the inputs choose one.
        unfollowed: Groups of lists that one loop runs in a way that the code does not tell.
        carried: Names that a loop uses from its second turn on, with what the turn before has left.
        lent: Child to the lists that it is handed and picks from: names of its parameters, to the names of the lists.
        problem: Why the code could not be read, ``""`` if it could.
    """

    order: list[str] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)
    passes: dict[str, int] = field(default_factory=dict)
    repeated: dict[str, int] = field(default_factory=dict)
    again: set[str] = field(default_factory=set)
    meanwhile: dict[str, set[str]] = field(default_factory=dict)
    both_times: set[str] = field(default_factory=set)
    both_ways: set[str] = field(default_factory=set)
    either: set[tuple[str, ...]] = field(default_factory=set)
    unfollowed: set[tuple[str, ...]] = field(default_factory=set)
    carried: set[str] = field(default_factory=set)
    lent: dict[str, dict[str, str]] = field(default_factory=dict)
    problem: str = ""


class Notes:
    """What has been noted of the order so far, while code is being read; the attributes are those of ``UseOrder``."""

    _scope: Scope

    def __init__(self) -> None:
        """Start with nothing used."""
        self.order: list[str] = []
        self.steps: dict[str, None] = {}
        self.passes: dict[str, int] = {}
        self.repeated: dict[str, int] = {}
        self.again: set[str] = set()
        self.meanwhile: dict[str, set[str]] = {}
        self.both_times: set[str] = set()
        self.both_ways: set[str] = set()
        self.either: set[tuple[str, ...]] = set()
        self.unfollowed: set[tuple[str, ...]] = set()
        self.carried: set[str] = set()
        self.lent: dict[str, dict[str, str]] = {}
        self._latest = ""
        self._begun: dict[str, int] = {}
        self._trace: list[str] = []
        self._elsewhere: set[str] = set()
        self._tables: set[str] = set()
        self._looped: list[set[str]] = []
        self._fresh: set[str] = set()
        self._whole: set[tuple[str, ...]] = set()  # what another branch calls
        self._trying = False

    def _use(self, name: str, path: str = "") -> None:
        """Note the use of an attribute, or of one element (``path``) of the list that it is."""
        if name not in self._scope.names:
            return
        self.steps.setdefault(path or name)
        if name not in self.order:
            self.order.append(name)
        elif name != self._latest and name not in self._fresh:
            self.again.add(name)
            for step in {name, path or name} & self._begun.keys():
                self.meanwhile[step] = set(self.order[self._begun[step] :])
                self.both_times |= {step} - self._elsewhere - self._tables
        self._begun.setdefault(path or name, len(self.order))
        self._trace.append(path or name)
        self._latest = name

    def _use_given(self, node: ast.expr) -> bool:
        """Note the use of a child that a method hands out: ``self.get_input_embeddings()(tokens)``."""
        given = self._scope.evaluate(node) if isinstance(node, ast.Call) else None
        if isinstance(given, Element):
            self._tables.add(given.path)  # no step feeds what is handed out by itself: it works on the tokens
            self._use(given.path.split(".")[0], given.path)
        return isinstance(given, Element)

    def _reorder(self, inside: list[str], looped: set[str]) -> None:
        within = [step for step in self.steps if step.split(".")[0] in inside]
        late = [step for step in within if step.split(".")[0] in looped]
        for step in late:
            del self.steps[step]
        self.steps.update(dict.fromkeys(late))
