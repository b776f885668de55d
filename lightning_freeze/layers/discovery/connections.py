"""Which tower feeds which, and which towers therefore stand side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from lightning_freeze.layers.discovery.module_tree import Node
from lightning_freeze.layers.discovery.towers import Tower
from lightning_freeze.layers.forward_source.value_flow import value_flow

FedBy = Mapping[str, frozenset[str]]
"""Name of a tower to the names of all towers that it depends on."""


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
            other.label for other in before if not (reads_code and _are_apart(other.root, tower.root))
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


def _are_apart(first: Node, second: Node) -> bool:
    """Whether the code that runs two modules certainly hands nothing of the first one to the second one."""
    around = first.parent
    while around is not None:
        if second.below(around) and not around.is_list:
            branches = [_path(first, around), _path(second, around)]
            flow = value_flow(around.module) if all(branches) else None
            if flow is not None and all(map(flow.runs, branches)):
                return not flow.feeds(*branches)
        around = around.parent
    return False


def _path(node: Node, around: Node) -> str:
    return node.name.removeprefix(around.name).removeprefix(".") if node is not around else ""
