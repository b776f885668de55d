"""What is found in a model before it becomes layers: stacks of blocks that run one after the other."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_freeze.layers.discovery.module_tree import Node

#: Attribute names of lists of blocks.
LIST_NAMES = frozenset({"layers", "blocks", "h", "stages"})


@dataclass(frozen=True)
class Block:
    """One step of a stack: usually one module, several where a model keeps parallel lists.

    Attributes:
        parts: The nodes that make up the block.
    """

    parts: tuple[Node, ...]

    @property
    def weights(self) -> int:
        """Number of weight tensors in the block."""
        return sum(part.weights for part in self.parts)


@dataclass(frozen=True)
class Stack:
    """Blocks that run one after the other.

    Attributes:
        home: The node that holds the blocks (the list, or the module with the numbered attributes).
        blocks: The blocks, first to last.
        label: Name that distinguishes this stack from others in the same home, where that is needed.
        zipped: Whether the blocks are columns of parallel lists.
        stages: The elements that the blocks were taken from, where these are stages; empty where they are not.
        named: Whether the blocks are attributes of any names, recognised by the chain that they form.
        joins: Whether its blocks become part of the stack beside it in the flow, under the same numbers.
        guessed: Whether nothing looked like blocks, so that the parts of one module are used as blocks.
    """

    home: Node
    blocks: tuple[Block, ...]
    label: str = ""
    zipped: bool = False
    stages: tuple[Block, ...] = ()
    named: bool = False
    joins: bool = False
    guessed: bool = False

    @property
    def weights(self) -> int:
        """Number of weight tensors in all blocks."""
        return sum(block.weights for block in self.blocks)
