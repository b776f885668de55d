"""From a module to the specification of its layers: the steps, in order."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from lightning_freeze.errors import debugging
from lightning_freeze.layers.discovery.block_lists import Stack
from lightning_freeze.layers.discovery.blocks import find_stacks
from lightning_freeze.layers.discovery.data_flow import Item, flow_and_ambiguities, interleave
from lightning_freeze.layers.discovery.module_tree import Node, build_tree
from lightning_freeze.layers.discovery.networks.bystanders import find_bystanders
from lightning_freeze.layers.discovery.networks.towers import Tower, name_towers
from lightning_freeze.layers.discovery.placement import Placement
from lightning_freeze.layers.discovery.structure import Structure
from lightning_freeze.layers.forward_source.optimized import optimized_parameters


def discover(module: nn.Module) -> Structure:
    """Find the layers of ``module`` without a forward pass and without touching its data.

    Args:
        module: Any module with at least one parameter.

    Returns:
        Its layers: embeddings, blocks, head.

    Raises:
        ValueError: If the module has no parameter.
    """
    root = build_tree(module)
    if next(module.parameters(), None) is None:
        raise ValueError(
            f"{type(module).__name__} has no parameters, so it has no layers to freeze. If the model is built in "
            "`configure_model` or `setup`, ask for its layers afterwards."
        )
    try:
        bystanders = find_bystanders(root, optimized_parameters(module))
        return _build_structure(root, bystanders, reads_code=True)
    except Exception as error:  # the code of a model must never end the search for its layers
        if debugging():
            raise
        structure = _build_structure(build_tree(module), [], reads_code=False)
        problem = f"{type(error).__name__}: {error}"
        structure.assumptions.append(f"the code could not be followed ({problem}): layers stand as they are registered")
        return structure


class _Network:
    """The main network of a module, or a bystander: its blocks, and its modules in the order of the data flow."""

    def __init__(self, root: Node, reads_code: bool) -> None:
        self.root = root
        self.found = find_stacks(root)
        laid_out, self.ambiguities = flow_and_ambiguities(root, self.found, reads_code)
        self.stacks: list[Stack]
        self.items: list[Item]
        self.stacks, self.items = interleave(self.found, laid_out)


def _build_structure(root: Node, bystanders: Sequence[Node], reads_code: bool) -> Structure:
    _detach(bystanders)
    networks = [_Network(node, reads_code) for node in (root, *bystanders)]
    named = _named_towers([network.stacks for network in networks])
    structure = Structure([], {}, [], [], {})
    for network, own in zip(networks, named, strict=True):
        placement = Placement(network.stacks, own, network.items, reads_code, len(networks) > 1)
        found = placement.structure()
        open_points = [*network.ambiguities, *placement.fed_later()]
        if network.root is not root:
            _mark_bystanders(found, own[0].label)
            found.assumptions = [f"{network.root.name}: takes no part in training, so it counts for nothing"]
        else:
            found.assumptions = _assumptions(network.found, network.stacks, open_points, placement.side_by_side())
        structure = _merged(structure, found)
    return structure


def _named_towers(networks: Sequence[Sequence[Stack]]) -> list[list[Tower]]:
    """The towers of each network; those of the main network are named as if it were the only one, if it has several."""
    towers = iter(name_towers([stack for stacks in networks for stack in stacks]))
    named = [[next(towers) for _ in stacks] for stacks in networks]
    alone = name_towers(networks[0]) if len(networks[0]) > 1 else named[0]
    taken = {tower.label for tower in alone} & {tower.label for stacks in named[1:] for tower in stacks}
    return named if taken else [alone, *named[1:]]


def _detach(bystanders: Sequence[Node]) -> None:
    """Remove networks from the tree of the main network; they keep their parents."""
    for node in bystanders:
        above = node.parent
        if above is not None:
            above.children = [child for child in above.children if child is not node]
        while above is not None:
            above.weights -= node.weights
            above.parameters -= node.parameters
            above = above.parent


def _mark_bystanders(structure: Structure, label: str) -> None:
    for layer in structure.layers:
        layer.is_bystander = True
        if layer.name in ("embeddings", "head"):
            layer.name = f"{label.split('.')[0]}.{layer.name}"


def _merged(first: Structure, second: Structure) -> Structure:
    return Structure(
        first.layers + second.layers,
        first.towers | second.towers,
        first.ignored + second.ignored,
        first.assumptions + second.assumptions,
        {**first.fed_by, **second.fed_by},
    )


def _assumptions(
    found: Sequence[Stack], stacks: Sequence[Stack], ambiguities: Sequence[str], parallel: str
) -> list[str]:
    lines = []
    if any(stack.guessed for stack in found):
        where = f"the parts of {found[0].home.name}" if found[0].home.name else "the parts of the module"
        lines.append(f"no list of blocks was found: {where} are taken for blocks, in the order in which they are used")
    found = [stack for stack in found if not stack.joins]
    if len(stacks) < len(found):
        names = [stack.home.name for stack in found if stack.home.name not in {s.home.name for s in stacks}]
        names = names or [stack.home.name for stack in found]
        lines.append(f"{', '.join(names)} take turns: numbered as one stack, as they run")
    return [*lines, *ambiguities, *[parallel] * bool(parallel)]
