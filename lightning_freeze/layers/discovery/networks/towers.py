"""Names the towers of a model with several stacks of blocks, and finds out how they are connected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from lightning_freeze.layers.discovery.block_lists import Stack
from lightning_freeze.layers.discovery.module_tree import WRAPPERS, Node, names_embedding, words_of

_SYNONYMS = {"visual": "vision", "language": "text"}
_SUFFIXES = ("_model", "_tower")
_RESERVED = frozenset({"embeddings", "head", "all", ""})
_CONTINUES = frozenset({"decoder", "language", "lm", "llm", "generator"})
_LANGUAGE = frozenset({"language", "lm", "llm"})
_CROSS = ("cross", "encoder_attn", "encdec", "multihead_attn")


@dataclass(frozen=True)
class Tower:
    """One stack as part of a whole model.

    Attributes:
        label: Short unique name used in layer names, ``""`` if the model has one stack only.
        alias: The attribute that the label was made from; selectors accept it too.
        root: The highest module that belongs to this tower only.
        has_own_inputs: Whether it starts from inputs of its own, not from what an earlier tower computed.
        language: Whether it is the language model behind another tower; its token embeddings run before that tower.
    """

    label: str
    alias: str
    root: Node
    has_own_inputs: bool = False
    language: bool = False


def name_towers(stacks: Sequence[Stack]) -> list[Tower]:
    """Name each stack by the attribute path component in which it differs from the others.

    Args:
        stacks: The stacks of one model.

    Returns:
        One tower for each stack, in the same order.
    """
    if len(stacks) == 1:
        return [Tower("", "", stacks[0].home)]
    paths = [_path(stack) for stack in stacks]
    aliases = _diverging(paths, list(range(len(paths))), 0)
    short = {index: _shorten(alias) for index, alias in aliases.items()}
    labels = {i: label if list(short.values()).count(label) == 1 else aliases[i] for i, label in short.items()}
    labels = {i: f"{label}_tower" if label in _RESERVED else label for i, label in labels.items()}
    return [
        _connect(Tower(labels[i], aliases[i], _tower_root(stack, i, stacks)), stack) for i, stack in enumerate(stacks)
    ]


def _path(stack: Stack) -> list[str]:
    parts = [part for part in stack.home.name.split(".") if part and part not in WRAPPERS]
    return [*parts, stack.label] if stack.label else parts


def _diverging(paths: list[list[str]], members: list[int], depth: int, named: int = -1) -> dict[int, str]:
    """Label the members of one group by the next component in which they differ, joined where they differ twice.

    ``named`` is the position of the last component that is part of the label already.
    """
    while len({tuple(paths[i][depth : depth + 1]) for i in members}) == 1 and depth < max(
        len(paths[i]) for i in members
    ):
        depth += 1
    labels: dict[int, str] = {}
    for key in dict.fromkeys(tuple(paths[i][depth : depth + 1]) for i in members):
        same = [i for i in members if tuple(paths[i][depth : depth + 1]) == key]
        label = key[0] if key else "main"
        if label.isdigit() and not (depth and named == depth - 1):
            label = f"{paths[same[0]][depth - 1]}.{label}" if depth else f"tower.{label}"
        if len(same) == 1 or not key:
            labels.update({i: label for i in same})
        else:
            labels.update({i: f"{label}.{rest}" for i, rest in _diverging(paths, same, depth + 1, depth).items()})
    return labels


def _shorten(alias: str) -> str:
    words = []
    for part in alias.split("."):
        for suffix in _SUFFIXES:
            part = part.removesuffix(suffix)
        words.append(_SYNONYMS.get(part, part))
    return ".".join(words)


def _tower_root(stack: Stack, index: int, stacks: Sequence[Stack]) -> Node:
    """The highest module that holds this stack and no other."""
    others = [other.home for position, other in enumerate(stacks) if position != index]
    node = stack.home
    while node.parent is not None and not any(other.below(node.parent) for other in others):
        node = node.parent
    return node


def _connect(tower: Tower, stack: Stack) -> Tower:
    words = words_of(tower.alias)
    continues = bool(words & _CONTINUES) or tower.alias == "backbone" or _crosses(stack)
    has_own_inputs = not continues and _own_inputs(tower.root, stack)
    language = bool(words & _LANGUAGE) and "decoder" not in words
    return Tower(tower.label, tower.alias, tower.root, has_own_inputs, language)


def _crosses(stack: Stack) -> bool:
    """Whether the blocks attend to another tower."""
    nodes = [node for block in stack.blocks[:1] for part in block.parts for node in part.walk()]
    return any(word in node.key.lower() or word in node.class_name.lower() for node in nodes for word in _CROSS)


def _own_inputs(root: Node, stack: Stack) -> bool:
    """Whether something in the tower, outside of its blocks, turns raw inputs into vectors."""
    parts = [part for block in stack.blocks for part in block.parts]
    for node in root.walk():
        entry = isinstance(node.module, nn.Embedding | nn.Conv1d | nn.Conv2d | nn.Conv3d) or names_embedding(node.key)
        if entry and not any(node.below(part) for part in parts):
            return True
    return False
