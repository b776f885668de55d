"""Sentences about places where the code of a module does not determine the order of its layers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Set

from lightning_freeze.layers.discovery.module_tree import Node
from lightning_freeze.layers.forward_source.use_order import UseOrder


class Ambiguities:
    """Collects what the code leaves open, container by container."""

    def __init__(self) -> None:
        """Start without any."""
        self._failed: list[str] = []
        self._unread: list[str] = []
        self._bidirectional: list[str] = []
        self._alternatives: list[str] = []
        self._unresolved: list[str] = []
        self._unmentioned: list[str] = []
        self._carried_over: list[str] = []

    def note(self, node: Node, source: UseOrder, opened: Set[int], blocks: Mapping[int, tuple[int, int]]) -> None:
        """Note what the code of one container does not determine.

        Args:
            node: The container.
            source: What its code says.
            opened: ``id`` of the nodes that hold blocks.
            blocks: ``id`` of the nodes that are blocks, to their stack and number.
        """
        holding = [child for child in node.children if child.parameters]
        if source.problem:
            self._failed.append(f"{node.name or node.class_name} ({source.problem})")
            return
        if not source.steps:
            self._unread += [node.name or node.class_name] * (len(holding) > 1)
            return
        with_blocks = {child.key for child in holding if id(child) in opened or id(child) in blocks}
        stack = {c.key: blocks[id(c.children[0])][0] for c in holding if c.children and id(c.children[0]) in blocks}
        self._bidirectional += [_full(node, key) for key in sorted(source.bidirectional)]
        self._alternatives += [
            _names(node, group) for group in sorted(source.alternatives) if with_blocks & _keys(group)
        ]
        # Columns of one stack (a convolution and a norm in each iteration) are not ambiguous.
        open_lists = (group for group in sorted(source.unresolved) if len({stack.get(k) for k in group} - {None}) > 1)
        self._unresolved += [_names(node, group) for group in open_lists]
        held = {child.key for child in holding} | set(node.own)
        self._carried_over += [_full(node, key) for key in sorted(source.carried_over & held)]
        self._unmentioned += [_full(node, key) for key in sorted(with_blocks - _keys(source.steps))]

    def sentences(self) -> list[str]:
        """One sentence for each kind of ambiguity that was found."""
        found = [
            (self._failed, "the code of {} could not be read: its parts stand as they are registered"),
            (self._unread, "the code of {} does not tell an order: its parts stand as they are registered"),
            (self._bidirectional, "{}: run in both directions, numbered as registered"),
            (self._alternatives, "{}: the inputs choose which one runs, they stand one behind the other"),
            (self._unresolved, "{}: one loop runs them in a way that its code does not tell, their order is a guess"),
            (
                self._carried_over,
                "{}: from the second turn of a loop on, what runs behind it has run in the turn before",
            ),
            (self._unmentioned, "{}: no code that runs it was found, it stands where it is registered"),
        ]
        return [sentence.format(", ".join(dict.fromkeys(names))) for names, sentence in found if names]


def _keys(paths: Collection[str]) -> set[str]:
    return {path.split(".")[0] for path in paths}


def _full(node: Node, key: str) -> str:
    return f"{node.name}.{key}" if node.name else key


def _names(node: Node, paths: Collection[str]) -> str:
    return " and ".join(_full(node, path) for path in paths)
