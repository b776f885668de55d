"""Networks that a module holds beside the one that trains: teachers, reference models, averages.

Such a network takes no part in training, so it does not count: not in percentages and slices of blocks, not in heights,
and no schedule unfreezes it. It is told from a frozen part of the network that trains by the flow of the data: a frozen
backbone feeds what trains, a teacher feeds the loss.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.optim.swa_utils import AveragedModel

from lightning_freeze.layers.discovery.connections import FedBy
from lightning_freeze.layers.discovery.module_tree import Node, words_of
from lightning_freeze.layers.discovery.towers import Tower

#: Attribute names of networks that exist to be compared with, not to be trained.
_COMPARED = frozenset(
    {"teacher", "ema", "reference", "ref", "averaged", "shadow", "target", "momentum", "perceptual", "lpips"}
)


def find_bystanders(towers: Sequence[Tower], parallel: bool, shared_head: Sequence[Node], fed_by: FedBy) -> set[str]:
    """The labels of the towers that take no part in training.

    Args:
        towers: All towers of a module.
        parallel: Whether any of them starts from inputs of its own beside another one.
        shared_head: What runs behind all towers.
        fed_by: The sources of each tower.

    Returns:
        Labels; empty unless a network that trains remains.
    """
    always = {tower.label for tower in towers if _is_average(tower.root)}
    if not parallel:
        return always if len(always) < len(towers) else set()
    trains = {tower.label for tower in towers if _trains(tower.root)} - always
    # Where something trainable runs behind all of them, a frozen network may well feed it.
    feeds = any(_trains(node) for node in shared_head)
    needed = {source for label in trains for source in fed_by.get(label, ())}
    frozen = {tower.label for tower in towers if not _trains(tower.root)} - needed
    if feeds:
        frozen &= {tower.label for tower in towers if (words_of(tower.alias) | _own_name(tower)) & _COMPARED}
    return always | frozen if trains else set()


def _own_name(tower: Tower) -> set[str]:
    return {word for part in tower.root.name.split(".") for word in words_of(part)}


def _is_average(root: Node) -> bool:
    node: Node | None = root
    while node is not None:
        if isinstance(node.module, AveragedModel):
            return True
        node = node.parent
    return False


def _trains(node: Node) -> bool:
    module: nn.Module = node.module
    return any(parameter.requires_grad for parameter in module.parameters())
