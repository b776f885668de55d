"""The modules of a model in the order in which data flows through them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace

from torch import nn

from lightning_freeze.layers.discovery.assumptions import Ambiguities
from lightning_freeze.layers.discovery.block_lists import Block, Stack
from lightning_freeze.layers.discovery.module_tree import Node, names_embedding, names_head
from lightning_freeze.layers.forward_source.reader import PASSED, use_order
from lightning_freeze.layers.forward_source.use_order import UseOrder


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
        runs_around: Modules that hold stacks and start before the last use of this step.
        reused_in_one_run: Whether a single run uses it both before and after these.
    """

    name: str
    parent: Node
    node: Node | None
    stack: int = -1
    block: int = -1
    passes: int = 1
    runs_around: tuple[Node, ...] = ()
    reused_in_one_run: bool = False


def flow_and_ambiguities(root: Node, stacks: Sequence[Stack], reads_code: bool = True) -> tuple[list[Item], list[str]]:
    """Lay out everything that ``root`` holds in the order of the data flow.

    Containers are opened until blocks and units remain. Inside a container the order of first use in its source counts;
    what the source does not mention keeps its place in registration order, unless its name tells where it belongs.

    Args:
        root: Tree of the whole model.
        stacks: The stacks of blocks found in it.
        reads_code: Whether the code of the modules is read; registration order and names decide alone otherwise.

    Returns:
        Blocks and units, which together cover every parameter, with the blocks numbered in the order of their first
        use; and one sentence for each place where the code does not tell the order for certain.
    """
    flow = _Flow(stacks, reads_code)
    items = flow.items(root, 1)
    items = _renumbered([*items, *flow.alias_items(items)])
    return items, flow.ambiguities.sentences()


def _renumbered(items: Sequence[Item]) -> list[Item]:
    order = list(dict.fromkeys((item.stack, item.block) for item in items if item.block >= 0))
    number = {step: sum(other[0] == step[0] for other in order[:i]) for i, step in enumerate(order)}
    return [replace(item, block=number[item.stack, item.block]) if item.block >= 0 else item for item in items]


def interleave(stacks: Sequence[Stack], items: Sequence[Item]) -> tuple[list[Stack], list[Item]]:
    """Merge stacks that alternate, such as gated cross-attention layers and the layers between them.

    Args:
        stacks: The stacks.
        items: The flow, with the blocks of the stacks.

    Returns:
        Stacks that do not overlap in the flow, and the flow with their blocks.
    """
    spans = {s: [i for i, item in enumerate(items) if item.stack == s and item.block >= 0] for s in range(len(stacks))}
    joined = {s: s for s in spans}
    for a, b in sorted((a, b) for a in spans for b in spans if a < b and spans[a] and spans[b]):
        if spans[a][0] < spans[b][-1] and spans[b][0] < spans[a][-1]:
            keep, gone = sorted((joined[a], joined[b]))
            joined = {s: keep if into == gone else into for s, into in joined.items()}
    for s, neighbour in _neighbours(stacks, items).items():
        keep, gone = sorted((joined[s], joined[neighbour]))
        joined = {other: keep if into == gone else into for other, into in joined.items()}
    if all(s == into for s, into in joined.items()):
        return list(stacks), list(items)
    kept = sorted(set(joined.values()))
    steps: dict[int, list[tuple[int, int]]] = {
        into: list(dict.fromkeys((i.stack, i.block) for i in items if i.block >= 0 and joined[i.stack] == into))
        for into in kept
    }
    merged = [_joined_stack([s for s in joined if joined[s] == into], stacks, steps[into], items) for into in kept]
    moved = [
        replace(item, stack=kept.index(joined[item.stack]), block=_position(item, steps[joined[item.stack]]))
        if item.stack >= 0
        else item
        for item in items
    ]
    return merged, moved


def _neighbours(stacks: Sequence[Stack], items: Sequence[Item]) -> dict[int, int]:
    """For each stack that joins another one: the stack beside it in the flow that shares the most modules around it.

    Of two that share as many it is the one behind.
    """
    order = list(dict.fromkeys(item.stack for item in items if item.stack >= 0))
    found: dict[int, int] = {}
    for place, stack in enumerate(order):
        beside = [*order[place + 1 : place + 2], *order[max(place - 1, 0) : place]]
        if stacks[stack].joins and beside:
            found[stack] = max(beside, key=lambda other: _shared_depth(stacks[stack].home, stacks[other].home))
    return found


def _shared_depth(one: Node, other: Node) -> int:
    around = {id(node) for node in _path_to_root(other)}
    return sum(id(node) in around for node in _path_to_root(one))


def _path_to_root(node: Node) -> Iterator[Node]:
    above: Node | None = node
    while above is not None:
        yield above
        above = above.parent


def _position(item: Item, steps: Sequence[tuple[int, int]]) -> int:
    return steps.index((item.stack, item.block)) if item.block >= 0 else -1


def _joined_stack(
    members: Sequence[int], stacks: Sequence[Stack], steps: Sequence[tuple[int, int]], items: Sequence[Item]
) -> Stack:
    if len(members) == 1:
        return stacks[members[0]]
    parts = {step: tuple(i.node for i in items if (i.stack, i.block) == step and i.node is not None) for step in steps}
    home = stacks[members[0]].home
    while not all(stacks[other].home.below(home) for other in members) and home.parent is not None:
        home = home.parent
    return Stack(home, tuple(Block(parts[step]) for step in steps))


class _Flow:
    def __init__(self, stacks: Sequence[Stack], reads_code: bool = True) -> None:
        self._reads_code = reads_code
        self._block = {
            id(part): (s, b)
            for s, stack in enumerate(stacks)
            for b, block in enumerate(stack.blocks)
            for part in block.parts
        }
        self._empty = {id(stack.home): s for s, stack in enumerate(stacks) if not stack.blocks}
        self._open: set[int] = set()
        self._done: set[tuple[int, str]] = set()
        self.ambiguities = Ambiguities()
        self._tied = _tied(stacks)
        self._aliases: list[Node] = []
        self._begun = False
        self._passed_lists: dict[int, dict[str, Node]] = {}
        # Modules that a container registers and passes to blocks: the first block that holds one runs it.
        parts = (part for stack in stacks for block in stack.blocks for part in block.parts)
        self._passed_modules = {id(other) for part in parts for node in part.walk() for other in node.shared.values()}
        for stack in stacks:
            node: Node | None
            for node in [stack.home, *(part.parent for block in stack.blocks for part in block.parts)]:
                while node is not None and id(node) not in self._open:
                    self._open.add(id(node))
                    node = node.parent

    def items(self, node: Node, passes: int) -> list[Item]:
        """The steps below a node, each module once: where it is used first."""
        self._done.add((id(node), ""))
        parent = node.parent or node
        if id(node) in self._block:
            self._begun = True
            stack, block = self._block[id(node)]
            return [Item(node.name, parent, node, stack, block, passes)]
        if id(node) in self._empty:
            return [Item(node.name, parent, node, self._empty[id(node)])]
        if id(node) not in self._open:
            return [Item(node.name, parent, node)]
        received = self._passed_lists.get(id(node), {})
        passed_lists = {name: one.module for name, one in received.items()}
        source = use_order(node.module, passed_lists) if self._reads_code and not node.is_list else None
        children = {**node.shared, **{child.key: child for child in node.children}}
        if source:
            self._remember_passed_lists(source, children)
        children |= {PASSED + name: one for name, one in received.items()}
        found: list[Item] = []
        known = {step.split(".")[0] for step in source.steps} if source else set()
        aliases = {c.key for c in node.children if c.key not in known and self._is_alias(c)} if known else set()
        if source:
            self.ambiguities.note(node, source, self._open, self._block)
        for step in _ordered(node, source.steps if source else [], {PASSED + name for name in received}):
            key, _, rest = step.partition(".")
            if key in aliases:
                self._aliases.append(children[key])
                continue
            if key not in children:
                if (id(node), key) not in self._done:
                    self._done.add((id(node), key))
                    found.append(Item(f"{node.name}.{key}" if node.name else key, node, None))
                continue
            child = self._element(children[key], rest, source is not None and key in source.reused)
            if (id(child), "") in self._done or (key in node.shared and self._is_inside_block(child)):
                continue
            if id(child) in self._passed_modules and (self._begun or step not in (source.steps if source else ())):
                continue
            holder = children[key]
            counted = (source.passes.get(key, 0) if source else 0) // max(
                1, len(holder.children) if holder.is_list else 1
            )
            if source and id(child) in self._block:
                counted = source.repeated.get(key, counted)
            inner = self.items(child, passes * max(1, counted, _copies(node, child)))
            # A unit that is used again before another stack starts has one place.
            used_between = source.used_between.get(step, set()) - {key} if source else set()
            weighty = (children[other] for other in used_between if other in children)
            runs_around = tuple(c for c in weighty if id(c) in self._open or id(c) in self._block)
            both = source is not None and not rest and step in source.reused_in_one_run
            if runs_around and len(inner) == 1:
                inner = [replace(inner[0], runs_around=runs_around, reused_in_one_run=both)]
            found += inner
        return found

    def _remember_passed_lists(self, source: UseOrder, children: Mapping[str, Node]) -> None:
        """Remember the lists that a container passes to its children, which run the elements."""
        for key, passed_lists in source.passed_lists.items():
            if key in children and id(children[key]) in self._open:
                found = {name: children[name_here] for name, name_here in passed_lists.items() if name_here in children}
                self._passed_lists.setdefault(id(children[key]), {}).update(found)

    def alias_items(self, items: Sequence[Item]) -> list[Item]:
        """Steps for modules that only hold weights of others, if no step covers these others."""
        if not self._aliases:
            return []
        covered = {key for item in items if item.node is not None for key in _parameters(item.node)}
        return [
            Item(one.name, one.parent or one, one) for one in self._aliases if not covered.issuperset(_parameters(one))
        ]

    def _is_alias(self, child: Node) -> bool:
        """Whether a module is not a block, and all of its parameters are also held elsewhere."""
        ids = _parameters(child)
        apart = id(child) in self._open or child.has_embedding  # a shared embedding table runs first
        return not apart and bool(ids) and self._tied.issuperset(ids)

    def _element(self, node: Node, path: str, apart: bool = False) -> Node:
        """Follow a path through lists and opened containers; the first other node is one step.

        With ``apart``, an embedding table that runs long before the rest of its container is a step as well.
        """
        for key in path.split(".") if path else ():
            below = next((child for child in node.children if child.key == key), node.shared.get(key))
            if apart and id(node) not in self._block and below is not None and isinstance(below.module, nn.Embedding):
                self._open.add(id(node))
            whole = id(node) in self._block or not (node.is_list or id(node) in self._open)
            if whole or below is None or (isinstance(node.module, nn.Sequential) and id(node) not in self._open):
                return node
            node = below
        return node

    def _is_inside_block(self, node: Node) -> bool:
        """Whether a module that is registered a second time is part of a block."""
        above = node.parent
        while above is not None:
            if id(above) in self._block:
                return True
            above = above.parent
        return False


def _copies(node: Node, child: Node) -> int:
    """How often a list holds the same module object."""
    return sum(module is child.module for module in node.module._modules.values()) if node.is_list else 1


def _tied(stacks: Sequence[Stack]) -> set[int]:
    """``id`` of each parameter that two modules hold."""
    root = stacks[0].home if stacks else None
    while root is not None and root.parent is not None:
        root = root.parent
    held = Counter(_parameters(root) if root is not None else ())
    return {key for key, count in held.items() if count > 1}


def _parameters(node: Node) -> list[int]:
    """``id`` of each parameter in a module and below."""
    return [id(p) for below in node.walk() for p in below.module._parameters.values() if p is not None]


def _ordered(node: Node, used: Sequence[str], received: Set[str] = frozenset()) -> list[str]:
    """Steps of a container: in the order of its code; what the code does not mention is in registration order."""
    registered = [*node.own, *(child.key for child in node.children)]
    if node.is_list:
        return registered
    known = {*registered, *node.shared, *received}
    order = [step for step in used if step.split(".")[0] in known]
    for position, key in enumerate(registered):
        places = [i for i, step in enumerate(order) if step.split(".")[0] == key]
        if places:
            if key not in order:
                order.insert(places[-1] + 1, key)  # the elements that the loop leaves out
        elif names_head(key):
            order.append(key)
        elif names_embedding(key) or position == 0:
            order.insert(0, key)
        else:
            before = registered[position - 1]
            order.insert(max(i for i, step in enumerate(order) if step.split(".")[0] == before) + 1, key)
    return order
