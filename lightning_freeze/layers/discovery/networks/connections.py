"""Which parts of a model feed which: towers side by side, branches of a stage, chains behind the blocks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from torch import nn

from lightning_freeze.layers.discovery.block_lists import Stack
from lightning_freeze.layers.discovery.module_tree import Node
from lightning_freeze.layers.discovery.networks.towers import Tower
from lightning_freeze.layers.discovery.structure import FedBy
from lightning_freeze.layers.forward_source.side_by_side import side_by_side

#: The named children of a stage are its blocks if they hold at least this share of its weights.
_NEARLY_ALL = 0.9


def find_sources(towers: Sequence[Tower], reads_code: bool = True) -> dict[str, frozenset[str]]:
    """The towers that each tower depends on.

    A tower with inputs of its own depends on none. Any other one depends on all towers before it, except those whose
    outputs do not reach it in the code of the module around both (two decoders behind one encoder).

    Args:
        towers: The towers in the order of the data flow.
        reads_code: Whether the code of the modules is read.

    Returns:
        Label of each tower to the labels of its sources.
    """
    found: dict[str, frozenset[str]] = {}
    for number, tower in enumerate(towers):
        before = [] if tower.has_own_inputs else towers[:number]
        found[tower.label] = frozenset(
            other.label for other in before if not (reads_code and are_unconnected(other.root, tower.root))
        )
    return found


def networks_of(towers: Sequence[str], fed_by: FedBy) -> list[list[str]]:
    """Group towers by the network that they belong to; different networks feed nothing into one another.

    Args:
        towers: Names of the towers in the order of the data flow.
        fed_by: The sources of each tower.
    """
    networks: list[list[str]] = []
    for tower in towers:
        joined = [network for network in networks if fed_by.get(tower, frozenset()) & set(network)]
        apart = [network for network in networks if network not in joined]
        merged = [name for network in joined for name in network]
        networks = [*apart, [*merged, tower]]
    return sorted(networks, key=lambda network: towers.index(network[0]))


def consumers_of(tower: str, towers: Iterable[str], fed_by: FedBy) -> frozenset[str]:
    """The towers among ``towers`` that depend on a tower."""
    return frozenset(other for other in towers if tower in fed_by.get(other, frozenset()))


def holder_of(node: Node) -> tuple[Node, str] | None:
    """The module whose code runs a node, and the path of the node there.

    Args:
        node: Any node.

    Returns:
        The nearest module above that is not just a list; ``None`` for the root, and below an ``nn.Sequential``, which
        runs its parts one after the other.
    """
    keys = [node.key]
    above = node.parent
    while above is not None and above.is_list and not has_own_forward(above.module):
        if isinstance(above.module, nn.Sequential):
            return None
        keys.insert(0, above.key)
        above = above.parent
    return None if above is None else (above, ".".join(keys))


def has_own_forward(module: nn.Module) -> bool:
    """Whether a container has a ``forward`` of its own, as subclasses may."""
    return getattr(type(module), "forward", None) not in (nn.Module.forward, nn.Sequential.forward)


def runs_behind(stack: Stack, stacks: Sequence[Stack]) -> bool:
    """Whether a list is a chain that continues from the output of the largest list under the same parent."""
    parent = stack.home.parent
    main = max((s for s in stacks if s.home.parent is parent), key=lambda s: s.weights)
    if parent is None or main is stack or main.home is stack.home or len(stack.blocks) < 2:
        return False
    flow = parent.flow
    first, last = main.home.key, stack.home.key
    if not (flow.runs(first) and flow.runs(last)):
        return False
    return runs_in_turn(stack.home) and flow.feeds(first, last) and not flow.feeds(last, first)


def runs_in_turn(node: Node) -> bool:
    """Whether the elements of a list are known to run one after the other, each on the output of the one before."""
    if isinstance(node.module, nn.Sequential):
        return True
    flow = node.parent.flow if node.parent is not None else None
    return flow is not None and flow.feeds_directly(node.key, node.key)


def named_chain(node: Node, children: Sequence[Node]) -> list[Node]:
    """The children in the order in which they run, if they are a chain of one class that is nearly all of a module.

    If a connection bypasses them, such as the residual connection of a block, they are parts of one block.
    """
    if len(children) < 2 or len({child.class_name for child in children}) > 1:
        return []
    if sum(child.weights for child in children) < _NEARLY_ALL * node.weights or node.flow.returns_input:
        return []
    keys = {child.key: child for child in children}
    depths = node.flow.depths(list(keys))
    order = (
        sorted(keys, key=depths.__getitem__) if depths is not None and len(set(depths.values())) == len(keys) else []
    )
    inner = all(node.flow.sources_of(b) <= {a} for a, b in pairwise(order))
    return [keys[key] for key in order] if inner and not node.flow.returned & set(order[:-1]) else []


def is_in_branch(node: Node, element: Node) -> bool:
    """Whether a module stands in one of several branches of ``element`` that run side by side."""
    above: Node | None = node
    while above is not None and above is not element:
        if runs_side_by_side(above):
            return True
        above = above.parent
    return False


def is_chain_of_children(element: Node, stack: Stack) -> bool:
    """Whether a stage is a chain of named children of one class (``b1``, ``b2``) and hardly anything else.

    Branches of a convolution look alike but feed nothing into one another; the two feed-forward parts of a Conformer
    block have attention between them.
    """
    if stack.home.is_list or stack.zipped or len(stack.blocks) < 2:
        return False
    if len({block.parts[0].class_name for block in stack.blocks}) > 1 or stack.weights < _NEARLY_ALL * element.weights:
        return False
    flow = stack.home.flow
    keys = [block.parts[0].key for block in stack.blocks]
    return all(flow.feeds_directly(a, b) for a, b in pairwise(keys))


def gives_outputs(node: Node) -> bool:
    """Whether a list makes several outputs of one input: its elements run side by side and feed nothing else."""
    container = node.parent
    if container is None or not runs_side_by_side(node):
        return False
    others = [other.key for other in container.children if other is not node]
    return container.flow.runs(node.key) and not any(container.flow.feeds(node.key, other) for other in others)


def runs_side_by_side(node: Node) -> bool:
    """Whether the code of a module above runs the elements of a list side by side."""
    if not isinstance(node.module, nn.ModuleList | nn.ModuleDict):
        return False
    path, above = node.key, node.parent
    while above is not None:
        if path in side_by_side(above.module):
            return True
        path, above = f"{above.key}.{path}", above.parent
    return False


def are_unconnected(first: Node, second: Node) -> bool:
    """Whether the code that runs two modules certainly passes nothing from the first to the second.

    A discriminator, which sees other inputs as well, is not a later step of what it is called on.
    """
    container = first.parent
    while container is not None:
        if second.below(container) and not container.is_list:
            branches = [_path(first, container), _path(second, container)]
            if all(branches) and all(map(container.flow.runs, branches)):
                return not container.flow.feeds(branches[0], branches[1]) or container.flow.is_discriminator(
                    branches[1]
                )
        container = container.parent
    return False


def _path(node: Node, container: Node) -> str:
    return node.name.removeprefix(container.name).removeprefix(".") if node is not container else ""
