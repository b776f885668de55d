"""Layers of models without normalised blocks: lists of plain modules, the parts of one module, recurrent networks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

from lightning_freeze.layers.discovery.block_lists import LIST_NAMES, Block, Stack
from lightning_freeze.layers.discovery.module_tree import Node, names_head, only_embeds
from lightning_freeze.layers.discovery.networks.connections import are_unconnected, gives_outputs, runs_side_by_side
from lightning_freeze.layers.forward_source.reader import use_order


def find_plain_lists(node: Node) -> list[Stack]:
    """Lists of modules of any kind, for models without normalised blocks (a multi-layer perceptron)."""
    members = [child for child in node.children if child.parameters]
    if runs_side_by_side(node) or (node.is_list and only_embeds(node)):
        return []  # several outputs of one input, or several inputs: no depth
    several = len(members) >= 2 or (len(members) == 1 and node.key in LIST_NAMES)
    if node.is_list and several and not isinstance(node.module, nn.ModuleDict):
        return [Stack(node, _with_norms(members))]
    children = members if node.is_list else [child for child in members if not names_head(child.key)]
    found = [stack for child in children for stack in find_plain_lists(child)]
    return found if 4 * sum(stack.weights for stack in found) >= node.weights else []


def children_as_blocks(root: Node) -> Stack:
    """The fallback: the modules at the first fork are the blocks, except for heads and embeddings."""
    node = root
    members = [child for child in node.children if child.parameters]
    while len(members) == 1 and members[0].children and not node.own:
        node = members[0]
        members = [child for child in node.children if child.parameters]
    middle = [c for c in members if not (names_head(c.key) or only_embeds(c) or gives_outputs(c))]
    repeated = {} if node.is_list else use_order(node.module).repeated
    middle = [child for child in middle if child.key in repeated] or middle
    blocks = _by_depth(node, _with_norms(middle or members or [node]))
    return Stack(node, blocks, guessed=len(middle) > 1)


def _by_depth(node: Node, blocks: tuple[Block, ...]) -> tuple[Block, ...]:
    """The blocks, with blocks that run side by side merged into one; unchanged if the code does not tell."""
    depths = None if node.is_list or not node.children else node.flow.depths([b.parts[0].key for b in blocks])
    if depths is None:
        return blocks
    steps: dict[int, list[Node]] = {}
    for block in blocks:
        steps.setdefault(depths[block.parts[0].key], []).extend(block.parts)
    return tuple(Block(tuple(steps[depth])) for depth in sorted(steps))


def recurrent_blocks(root: Node, stacks: Sequence[Stack]) -> list[Stack]:
    """Recurrent networks outside of all blocks: each is a block of its own, not part of the embeddings.

    Args:
        root: Tree of the network.
        stacks: The stacks of blocks found in it.
    """
    blocks = {id(part) for stack in stacks for block in stack.blocks for part in block.parts}

    def outside(node: Node) -> Iterator[Node]:
        for child in node.children:
            if id(child) in blocks or names_head(child.key) or runs_side_by_side(child):
                continue
            if isinstance(child.module, nn.RNNBase):
                yield child
            else:
                yield from outside(child)

    found = list(outside(root)) if any(stack.blocks for stack in stacks) else []
    homes = [stack.home for stack in stacks]
    return [
        Stack(
            one.parent,
            (Block((one,)),),
            joins=not all(are_unconnected(home, one) and are_unconnected(one, home) for home in homes),
        )
        for one in found
        if one.parent is not None
    ]


def _with_norms(members: Sequence[Node]) -> tuple[Block, ...]:
    """Blocks of one module each; a normalisation joins the module before it, or the next one if it comes first."""
    if all(map(_is_norm, members)) or not any(map(_is_norm, members)):
        return tuple(Block((member,)) for member in members)
    ordered = list(members) if not _is_norm(members[0]) else list(members)[::-1]
    groups: list[list[Node]] = []
    for member in ordered:
        if groups and _is_norm(member):
            groups[-1].append(member)
        else:
            groups.append([member])
    if ordered[0] is members[0]:
        return tuple(Block(tuple(group)) for group in groups)
    return tuple(Block(tuple(group[::-1])) for group in groups[::-1])


def _is_norm(node: Node) -> bool:
    """Whether a module only normalises: by its name, and without a weight of two dimensions."""
    return node.normalizes and not node.weights and not node.children
