"""Which layer each part of a network belongs to: the blocks, and the modules around them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn
from torchmetrics import Metric, MetricCollection

from lightning_freeze.layers.discovery.block_lists import Stack
from lightning_freeze.layers.discovery.data_flow import Item
from lightning_freeze.layers.discovery.module_tree import Node, words_of
from lightning_freeze.layers.discovery.networks.connections import consumers_of, find_sources
from lightning_freeze.layers.discovery.networks.towers import Tower
from lightning_freeze.layers.discovery.structure import Kind, LayerSpec, Structure


class Placement:
    """Decides which layer each unit outside the blocks belongs to.

    Args:
        stacks: The stacks of blocks of the network.
        towers: The name of each stack, and how it is connected.
        items: Blocks and units in the order of the data flow.
        reads_code: Whether the code of the modules is read.
        is_one_of_several: Whether the module holds other networks, so that the names of all layers need the tower's.
    """

    def __init__(
        self,
        stacks: Sequence[Stack],
        towers: Sequence[Tower],
        items: list[Item],
        reads_code: bool,
        is_one_of_several: bool = False,
    ) -> None:
        order = [s for s in dict.fromkeys(item.stack for item in items) if s >= 0]
        self._items = items
        self._stacks = stacks
        self._towers = towers
        self._order = order
        self._fed_by = find_sources([self._towers[s] for s in order], reads_code)
        self._parallel = is_one_of_several or any(self._towers[s].has_own_inputs for s in order[1:])
        self._has_separate_towers = any(not self._feeds(a, b) for a, b in pairwise(order))
        self._branches = is_one_of_several or self._has_separate_towers
        self._layers: dict[str, LayerSpec] = {}
        self._common: dict[str, list[str]] = {}
        self._prepared: set[tuple[int, int]] = set()

    def _feeds(self, first: int, second: int) -> bool:
        return self._towers[first].label in self._fed_by[self._towers[second].label]

    def structure(self) -> Structure:
        """The layers, and how the towers are connected."""
        self._declare_layers()
        ignored = []
        steps = [(i, item) for i, item in enumerate(self._items) if item.stack >= 0]
        for position, item in enumerate(self._items):
            if item.stack >= 0:
                if item.block >= 0:
                    layer = self._layers[self._block(item.stack, item.block)]
                    layer.prefixes.append(item.name)
                    layer.passes = max(layer.passes, item.passes)
                continue
            if _is_loss(item) and not (item.node and item.node.parameters):
                ignored.append(item.name)
                continue
            last = next((step for i, step in reversed(steps) if i < position), None)
            following = next((step for i, step in steps if i > position), None)
            name = "head" if _is_loss(item) else self._place(item, last, following)
            self._layers[name].prefixes.append(item.name)
        self._merge_parameterless_layers()
        layers = [layer for layer in self._layers.values() if layer.prefixes]
        return Structure(
            layers,
            {t.label: t.alias for t in self._towers if t.label},
            ignored,
            fed_by=self._fed_by,
        )

    def side_by_side(self) -> str:
        """A sentence on towers that do not feed each other, ``""`` if there are none."""
        if not self._has_separate_towers:
            return ""
        names = ", ".join(self._towers[s].label for s in self._order)
        common = (
            f"; {', '.join(shared)} works for several of them and counts as {layer}"
            for layer, shared in self._common.items()
        )
        return f"{names}: not each feeds the next, they stand in the order in which the code runs them{''.join(common)}"

    def fed_later(self) -> list[str]:
        """A sentence on units that one run uses again on the output of a later stack, except embedding tables."""
        shared = {name for names in self._common.values() for name in names}
        apart = [
            i for i in self._items if i.reused_in_one_run and i.name not in shared and i.node and i.node.parameters
        ]
        names = [i.name for i in apart if i.node is not None and not isinstance(i.node.module, nn.Embedding)]
        what = "run once more behind layers that come later: where they run first counts"
        return [f"{', '.join(names)}: {what}"] * (bool(names) and self._parallel)

    def _declare_layers(self) -> None:
        """Create all possible layers, in order."""
        self._add("embeddings", "embeddings")
        for s in self._order:
            label = self._towers[s].label
            if self._parallel:
                self._add(f"{label}.embeddings", "embeddings")
            for b in range(len(self._stacks[s].blocks)):
                self._add(self._block(s, b), "block")
            if self._branches:
                self._add(f"{label}.head", "head")
        self._add("head", "head")

    def _add(self, name: str, kind: Kind) -> None:
        self._layers[name] = LayerSpec(name, kind)

    def _block(self, stack: int, block: int) -> str:
        label = self._towers[stack].label
        return f"{label}.{block}" if label else str(block)

    def _place(self, item: Item, last: Item | None, following: Item | None) -> str:
        if last is None and following is None:
            return "head"
        if last is None:
            assert following is not None
            if (
                self._parallel
                and item.runs_around
                and _projects(item)
                and not self._has_later_consumer(item, following.stack)
            ):
                self._common.setdefault("head", []).append(item.name)
                return "head"  # it embeds tokens first, and projects the output of a tower later
            return self._before(item, following.stack)
        if following is None:
            return self._after(item, last.stack)
        if last.stack == following.stack:
            joins = following if self._belongs_to_next_stage(item, last, following) else last
            return self._block(joins.stack, joins.block)
        return self._between(item, last.stack, following.stack)

    def _belongs_to_next_stage(self, item: Item, last: Item, following: Item) -> bool:
        """Whether a unit between two blocks is in the stage of the second block only."""
        node: Node | None = item.parent
        while node is not None:
            before = last.node is not None and last.node.below(node)
            after = following.node is not None and following.node.below(node)
            if before or after:
                return not before or (after and _same_number(item, last, following))
            node = node.parent
        return False

    def _between(self, item: Item, a: int, b: int) -> str:
        if _inside(item, self._towers[b]):
            return self._before(item, b)
        if self._towers[b].has_own_inputs and item.runs_around and not _inside(item, self._towers[a]):
            # If nothing consumes the outputs of both towers, a unit that they share runs last.
            layer = self._after(item, a) if self._has_later_consumer(item, b) else "head"
            self._common.setdefault(layer, []).append(item.name)
            return layer
        finishes = item.node is not None and "norm" in item.node.class_name.lower()
        if (a, b) in self._prepared:
            return self._before(item, b)
        if _inside(item, self._towers[a]) or not self._feeds(a, b) or finishes:
            return self._after(item, a)
        if item.node is None or item.node.parameters:
            self._prepared.add((a, b))  # later units prepare the second stack too, norms included
        return self._before(item, b)

    def _has_later_consumer(self, item: Item, stack: int) -> bool:
        """Whether a later tower works on the outputs of others, after the last use of the unit."""
        behind = self._order[self._order.index(stack) + 1 :]
        begun = {s for s in behind if any(self._stacks[s].home.below(node) for node in item.runs_around)}
        return any(not self._towers[s].has_own_inputs for s in behind if s not in begun)

    def _before(self, item: Item, stack: int) -> str:
        """The layer for a unit that runs before a stack."""
        tower = self._towers[stack]
        first = stack == self._order[0]
        if self._parallel and (first or tower.has_own_inputs):
            return f"{tower.label}.embeddings" if _inside(item, tower) else "embeddings"
        positions = bool(words_of(item.name.rpartition(".")[2]) & {"pos", "position", "positions", "positional"})
        embeds = item.node is not None and item.node.has_embedding and not positions
        tokens = tower.language and _inside(item, tower) and embeds
        if first or (tokens and not self._parallel) or not self._stacks[stack].blocks:
            return "embeddings"
        if tokens and not self._layers[self._block(stack, 0)].prefixes:
            return f"{tower.label}.embeddings"
        return self._block(stack, 0)

    def _after(self, item: Item, stack: int) -> str:
        """The layer for a unit that runs behind a stack."""
        tower = self._towers[stack]
        final = stack == self._order[-1]
        is_output = self._branches and not final and not consumers_of(tower.label, self._fed_by, self._fed_by)
        if is_output or (self._parallel and (_inside(item, tower) or not final)):
            return f"{tower.label}.head"
        if final or not self._stacks[stack].blocks:
            return "head"
        return self._block(stack, len(self._stacks[stack].blocks) - 1)

    def _merge_parameterless_layers(self) -> None:
        """Merge embeddings and heads without any parameters into the block beside them.

        A single dropout cannot be trained, but its mode has to follow that of its block.
        """
        bare = {item.name for item in self._items if item.node is not None and not item.node.parameters}
        names = list(self._layers)
        for position, name in enumerate(names):
            layer = self._layers[name]
            if layer.kind == "block" or not layer.prefixes or not bare.issuperset(layer.prefixes):
                continue
            around = names[position + 1 :] if layer.kind == "embeddings" else names[:position][::-1]
            joins = next((n for n in around if self._layers[n].kind == "block"), None)
            if joins is not None:
                self._layers[joins].prefixes += layer.prefixes
                layer.prefixes = []


def _same_number(item: Item, last: Item, following: Item) -> bool:
    """Whether a unit in a list beside the stages (``patch_embeddings.1``) has the number of the next stage only."""
    parts = item.name.split(".")
    here = parts[-1]
    if not here.isdecimal():
        return False
    numbers = [dict(enumerate(step.name.split("."))).get(len(parts) - 1) for step in (last, following)]
    return numbers[1] == here and numbers[0] != here


def _inside(item: Item, tower: Tower) -> bool:
    return item.parent.below(tower.root) or item.node is tower.root


def _projects(item: Item) -> bool:
    """Whether a unit turns tokens into vectors, and has weights for something else as well."""
    tables = [n.weights for n in item.node.walk() if isinstance(n.module, nn.Embedding)] if item.node else []
    return bool(item.node and tables and item.node.weights > sum(tables))


def _is_loss(item: Item) -> bool:
    """Whether a unit is a metric or a loss: it runs behind everything, wherever it was registered."""
    if item.node is None:
        return False
    module = item.node.module
    name = item.node.class_name
    if isinstance(module, nn.ModuleList | nn.ModuleDict) and len(module):
        return all(isinstance(child, Metric | MetricCollection) for child in module.children())
    return isinstance(module, Metric | MetricCollection | nn.modules.loss._Loss) or name.endswith(("Loss", "Metric"))
