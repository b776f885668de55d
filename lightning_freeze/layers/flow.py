"""The modules of a model in the order in which data flows through them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lightning_freeze.layers.blocks import Stack
from lightning_freeze.layers.source import use_order
from lightning_freeze.layers.tree import Node, names_embedding, names_head


@dataclass(frozen=True)
class Item:
    """One step of the flow: a block, or a unit (a module or a single parameter) outside of all blocks.

    Attributes:
        name: Full name of the module or parameter.
        parent: The node that holds it.
        node: Its node, ``None`` for a parameter that a container holds directly.
        stack: Index of the stack for a block, else -1.
        block: Index of the block in its stack; -1 marks the place of a stack without blocks.
        passes: How many times the model runs the block in one forward pass.
        again: Whether the code that uses it comes back to it after using something else.
    """

    name: str
    parent: Node
    node: Node | None
    stack: int = -1
    block: int = -1
    passes: int = 1
    again: bool = False


def flow_of(root: Node, stacks: Sequence[Stack]) -> list[Item]:
    """Lay out everything that ``root`` holds in the order of the data flow.

    Containers are opened until blocks and units remain. Inside a container the order of first use in its source counts;
    what the source does not mention keeps its place in registration order, unless its name tells where it belongs.

    Args:
        root: Tree of the whole model.
        stacks: The stacks of blocks found in it.

    Returns:
        Blocks and units; together they cover every parameter. Blocks are numbered in the order of their first use.
    """
    items = _Flow(stacks).items(root, 1)
    order = list(dict.fromkeys((item.stack, item.block) for item in items if item.block >= 0))
    number = {step: sum(other[0] == step[0] for other in order[:i]) for i, step in enumerate(order)}
    return [replace(item, block=number[item.stack, item.block]) if item.block >= 0 else item for item in items]


class _Flow:
    def __init__(self, stacks: Sequence[Stack]) -> None:
        self._block = {
            id(part): (s, b)
            for s, stack in enumerate(stacks)
            for b, block in enumerate(stack.blocks)
            for part in block.parts
        }
        self._empty = {id(stack.home): s for s, stack in enumerate(stacks) if not stack.blocks}
        self._open: set[int] = set()
        for stack in stacks:
            node: Node | None
            for node in [stack.home, *(part.parent for block in stack.blocks for part in block.parts)]:
                while node is not None and id(node) not in self._open:
                    self._open.add(id(node))
                    node = node.parent

    def items(self, node: Node, passes: int) -> list[Item]:
        parent = node.parent or node
        if id(node) in self._block:
            stack, block = self._block[id(node)]
            return [Item(node.name, parent, node, stack, block, passes)]
        if id(node) in self._empty:
            return [Item(node.name, parent, node, self._empty[id(node)])]
        if id(node) not in self._open:
            return [Item(node.name, parent, node)]
        source = None if node.is_list else use_order(node.module)
        children = {child.key: child for child in node.children}
        found: list[Item] = []
        for key in _ordered(node, source.order if source else []):
            if key not in children:
                found.append(Item(f"{node.name}.{key}" if node.name else key, node, None))
                continue
            child = children[key]
            counted = (source.passes.get(key, 0) if source else 0) // max(
                1, len(child.children) if child.is_list else 1
            )
            if source and id(child) in self._block:
                counted = source.repeated.get(key, counted)
            inner = self.items(child, passes * max(1, counted, _copies(node, child)))
            shared = source is not None and key in source.again and len(inner) == 1
            found += [replace(inner[0], again=True)] if shared else inner
        return found


def _copies(node: Node, child: Node) -> int:
    """How often a list holds the very same module."""
    return sum(module is child.module for module in node.module._modules.values()) if node.is_list else 1


def _ordered(node: Node, used: Sequence[str]) -> list[str]:
    registered = [*node.own, *(child.key for child in node.children)]
    if node.is_list:
        return registered
    order = [key for key in used if key in registered]
    for position, key in enumerate(registered):
        if key in order:
            continue
        if names_head(key):
            order.append(key)
        elif names_embedding(key) or position == 0:
            order.insert(0, key)
        else:
            order.insert(order.index(registered[position - 1]) + 1, key)
    return order
