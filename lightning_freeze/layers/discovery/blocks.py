"""Finding the repeated blocks of a model from its structure alone.

A block is a module with at least two weight tensors and a normalisation; a stack is a list of them. Weight *tensors*
are counted, not elements, so that a tiny model and a large one of the same architecture give the same answer.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from lightning_freeze.layers.discovery.block_lists import LIST_NAMES, Block, Stack
from lightning_freeze.layers.discovery.module_tree import Node, names_head, only_embeds, words_of
from lightning_freeze.layers.discovery.networks.connections import (
    is_chain_of_children,
    is_in_branch,
    named_chain,
    runs_behind,
    runs_in_turn,
    runs_side_by_side,
)
from lightning_freeze.layers.discovery.plain_blocks import children_as_blocks, find_plain_lists, recurrent_blocks
from lightning_freeze.layers.forward_source.reader import use_order

_BLOCK_WORDS = frozenset({"layer", "layers", "block", "blocks", "stage", "stages", "group"})
_WHOLE_MODELS = frozenset({"encoder", "decoder", "tower", "model", "backbone", "branch", "net", "network", "bert"})

#: Stacks that hold a smaller share of a model's weights are not taken for its blocks.
_ENOUGH = 0.15


def find_stacks(root: Node) -> list[Stack]:
    """Find the stacks of blocks below ``root``, in registration order.

    Args:
        root: Tree of the whole model.

    Returns:
        One stack per tower; a single stack without blocks where the model was configured with none.
    """
    stacks = _drop_small(_Finder().find(root))
    if sum(stack.weights for stack in stacks) >= _ENOUGH * root.weights and stacks:
        return [*stacks, *recurrent_blocks(root, stacks)]
    empty = _empty_stack(root)
    if empty is not None:
        return [empty]
    plain = _drop_small(find_plain_lists(root)) or [children_as_blocks(root)]
    return [*plain, *recurrent_blocks(root, plain)]


class _Finder:
    """The strict search; remembers what it found, because towers and stages are looked at more than once."""

    def __init__(self) -> None:
        self._known: dict[int, list[Stack]] = {}

    def find(self, node: Node) -> list[Stack]:
        if id(node) not in self._known:
            self._known[id(node)] = self._find(node)
        return self._known[id(node)]

    def _find(self, node: Node) -> list[Stack]:
        if not node.children or node.key == "parametrizations" or node.weights < 2:
            return []
        if node.is_list:
            stack = self._from_list(node)
            if stack is not None:
                return [self._expand(stack)]
        numbered = self._from_numbered(node)
        if numbered is not None:
            return [self._expand(numbered)]
        found = [s for child in node.children if node.is_list or not _is_head(child) for s in self.find(child)]
        if not found and not node.is_list:
            found = _from_parallel_lists(node) or self._from_named(node)
        return _drop_side_lists(found)

    def _from_list(self, node: Node) -> Stack | None:
        if runs_side_by_side(node):
            return None
        blocks = [child for child in node.children if _is_block(child)]
        kinds = {block.class_name for block in blocks if _is_checkpointing_layer(block)}  # including small ones
        blocks = [c for c in node.children if c in blocks or (c.weights and c.class_name in kinds)]
        if not blocks or 2 * sum(b.weights for b in blocks) < node.weights or any(map(self._is_tower, blocks)):
            return None
        if not (_are_same_kind(blocks) or node.key in LIST_NAMES or any(map(_is_checkpointing_layer, blocks))):
            return None
        return Stack(node, tuple(Block((b,)) for b in blocks))

    def _from_numbered(self, node: Node) -> Stack | None:
        """Blocks or stages in numbered attributes: ``layer1`` ... ``layer4``, ``block_0`` ..."""
        families: dict[str, list[tuple[int, Node]]] = {}
        for child in node.children:
            match = re.fullmatch(r"(\D*[a-zA-Z]\D*)(\d+)", child.key)
            if match and not node.is_list:
                families.setdefault(match[1], []).append((int(match[2]), child))
        for child in node.children:
            for prefix, members in families.items():
                if child.key == prefix.rstrip("_"):  # ``repeat``, ``repeat_1``, ``repeat_2``
                    members.append((-1, child))
        for prefix, members in families.items():
            nodes = [child for _, child in sorted(members, key=lambda member: member[0]) if _is_block(child)]
            whole = words_of(prefix) & _WHOLE_MODELS or any(map(self._is_tower, nodes))
            if len(nodes) >= 2 and not whole and 2 * sum(n.weights for n in nodes) >= node.weights:
                return Stack(node, tuple(Block((n,)) for n in nodes), prefix.rstrip("_"))
        return None

    def _from_named(self, node: Node) -> list[Stack]:
        """Blocks of one class in attributes of any names (``first``, ``second``) that run one after the other."""
        chain = named_chain(node, [child for child in node.children if _is_block(child)])
        return [self._expand(Stack(node, tuple(Block((child,)) for child in chain), named=True))] if chain else []

    def _is_tower(self, node: Node) -> bool:
        """Whether an element is a whole model: it brings its own blocks and its own embedding table."""
        stacks = self.find(node)
        inside = [part for stack in stacks for block in stack.blocks for part in block.parts]
        tables = [n for n in node.walk() if isinstance(n.module, nn.Embedding)]
        return bool(inside) and any(not any(table.below(part) for part in inside) for table in tables)

    def _expand(self, stack: Stack) -> Stack:
        """Replace stages by the blocks that they hold, if most of them hold a stack of their own."""
        inner = [self._inner_stack(block.parts[0]) for block in stack.blocks]
        kinds = {_kind(found) for found in inner if found}
        # If most elements are stages, all are, also one that holds a single block or a large projection.
        inner = [found or self._stage(block.parts[0], kinds) for found, block in zip(inner, stack.blocks, strict=True)]
        if 2 * sum(found is not None for found in inner) < len(inner):
            return stack
        blocks = [
            _blocks_of_stages(found) if found else (block,) for found, block in zip(inner, stack.blocks, strict=True)
        ]
        return replace(stack, blocks=tuple(block for group in blocks for block in group), stages=stack.blocks)

    def _stage(self, element: Node, kinds: set[str]) -> Stack | None:
        """The blocks of an element, if they are of the kinds that other stages hold."""
        if element.is_list and element.children and all(child.class_name in kinds for child in element.children):
            return Stack(element, tuple(Block((child,)) for child in element.children))
        return next((stack for stack in self.find(element) if _kind(stack) in kinds), None)

    def _inner_stack(self, element: Node) -> Stack | None:
        stacks = self.find(element)
        largest = max(stacks, key=lambda stack: stack.weights, default=None)
        if largest is None or 2 * largest.weights < element.weights or _is_mixture_of_experts(element, largest):
            return None
        if largest.home is not element and is_in_branch(largest.home, element):
            return None
        # Parallel lists and numbered attributes inside a block (branches of a convolution) are not blocks.
        if largest.named:
            return None if _is_checkpointing_layer(element) else largest
        named = words_of(largest.label or largest.home.key) & _BLOCK_WORDS
        branches = largest.zipped or (not named and (largest.label or _is_checkpointing_layer(element)))
        chained = not _is_checkpointing_layer(element) and is_chain_of_children(element, largest)
        return None if branches and not chained else largest


def _blocks_of_stages(found: Stack) -> tuple[Block, ...]:
    """The blocks of a stage, not the parts of these blocks: only lists in lists are expanded further."""
    lists = all(part.is_list for block in found.stages for part in block.parts)
    return found.blocks if lists else found.stages


def _is_mixture_of_experts(element: Node, stack: Stack) -> bool:
    """Whether a list inside a block is a mixture of experts: named so, or a router weight has one row per expert."""
    if "expert" in stack.home.name.lower():
        return True
    count = len(stack.blocks)
    outside = [n for n in element.walk() if not n.below(stack.home)]
    shapes = [tuple(n.module._parameters[own].shape) for n in outside for own in n.own if _is_initialised(n, own)]  # type: ignore[union-attr]
    return count > 1 and any(len(shape) == 2 and count in shape for shape in shapes)


def _is_initialised(node: Node, own: str) -> bool:
    return not isinstance(node.module._parameters[own], nn.UninitializedParameter)


def _is_block(node: Node) -> bool:
    return node.weights >= 2 and bool(node.children) and (node.normalizes or _is_checkpointing_layer(node))


def _is_checkpointing_layer(node: Node) -> bool:
    """Whether transformers marks the class as the unit of gradient checkpointing."""
    return any(cls.__name__ == "GradientCheckpointingLayer" for cls in type(node.module).__mro__)


def _are_same_kind(blocks: Sequence[Node]) -> bool:
    """Whether elements are of one kind: a repeated class, a shared class suffix, or one class named like a block."""
    names = [block.class_name for block in blocks]
    repeated = Counter(names).most_common(1)[0][1]
    if len(blocks) == 1:
        return bool(words_of(names[0]) & _BLOCK_WORDS)
    suffixes = {tuple(re.findall(r"[A-Z][a-z0-9]*", name)[-2:]) for name in names}
    return repeated >= max(2, len(blocks) / 2) or (len(suffixes) == 1 and len(next(iter(suffixes))) == 2)


def _from_parallel_lists(node: Node) -> list[Stack]:
    """Blocks kept in parallel lists of equal length (``attentions``, ``ffns``): the n-th of each make one block."""
    lists = [child for child in node.children if isinstance(child.module, nn.ModuleList) and child.parameters]
    lists = [child for child in lists if not (runs_side_by_side(child) or only_embeds(child))]
    lengths = Counter(len(child.children) for child in lists)
    length, count = lengths.most_common(1)[0] if lengths else (0, 0)
    same = [child for child in lists if len(child.children) == length]
    if count < 2 or not length or 2 * sum(child.weights for child in same) < node.weights:
        return []
    columns = zip(*(child.children for child in same), strict=True)
    if _run_one_list_at_a_time(node, [child.key for child in same]):
        return [Stack(child, tuple(Block((part,)) for part in child.children)) for child in lists]
    return [Stack(node, tuple(Block(tuple(column)) for column in columns), zipped=True)]


def _run_one_list_at_a_time(node: Node, lists: Sequence[str]) -> bool:
    """Whether the code of a module runs each of its lists to the end before it starts the next one."""
    source = use_order(node.module)
    used = [name for name in (step.split(".")[0] for step in source.steps) if name in lists]
    together = any(len(set(group) & set(lists)) > 1 for group in source.unresolved)
    runs = sum(name != before for name, before in zip(used, ["", *used], strict=False))
    return set(used) == set(lists) and runs == len(lists) and not together


def _drop_side_lists(stacks: list[Stack]) -> list[Stack]:
    """Drop the lists that accompany the blocks, under the same parent.

    They are much smaller and shorter, or of a kind that the parent also holds on its own (a merger for some of the
    blocks and one for the last).
    """
    size: dict[tuple[int, str], list[int]] = {}
    for stack in stacks:
        total = size.setdefault(_family(stack), [0, 0])
        total[0] += stack.weights
        total[1] += len(stack.blocks)

    def is_side_list(stack: Stack) -> bool:
        if runs_behind(stack, stacks):
            return False
        parent, own = stack.home.parent, size[_family(stack)]
        others = [total for family, total in size.items() if family[0] == id(parent) and total is not own]
        if any(other[0] * 0.34 > own[0] and other[1] > own[1] for other in others):
            return True
        largest = max((other[0] for other in others), default=0)
        return bool(parent) and largest >= own[0] and _kind(stack) in {c.class_name for c in parent.children}  # type: ignore[union-attr]

    return [stack for stack in stacks if not is_side_list(stack)]


def _family(stack: Stack) -> tuple[int, str]:
    return id(stack.home.parent), _kind(stack)


def _kind(stack: Stack) -> str:
    return stack.blocks[0].parts[0].class_name if stack.blocks else ""


def _is_head(node: Node) -> bool:
    """Whether a module follows the blocks, by its name, and is not a list of blocks itself (``cls_attn``)."""
    if not names_head(node.key):
        return False
    kinds = {child.class_name for child in node.children}
    repeats = len(node.children) > 1 and len(kinds) == 1 and all(map(_is_block, node.children)) and runs_in_turn(node)
    return not (node.is_list and (repeats or words_of(node.key) & _BLOCK_WORDS))


def _drop_small(stacks: list[Stack]) -> list[Stack]:
    largest = max(stacks, key=lambda stack: stack.weights, default=None)
    if largest is None:
        return []

    def keeps(stack: Stack) -> bool:
        marked = any(_is_checkpointing_layer(part) for block in stack.blocks for part in block.parts)
        large = 10 * stack.weights >= largest.weights or 2 * len(stack.blocks) >= len(largest.blocks)
        return marked or large or runs_behind(stack, stacks)

    # A short stack of the same blocks as a long one (the stem of a convolutional encoder) is one too.
    kinds = {_kind(stack) for stack in stacks if keeps(stack)} - {*vars(nn)}
    return [stack for stack in stacks if keeps(stack) or _kind(stack) in kinds]


def _empty_stack(root: Node) -> Stack | None:
    for node in root.walk():
        if node.is_list and not node.module._modules and node.key in {*LIST_NAMES, "layer", "block"}:
            return Stack(node, ())
    return None
