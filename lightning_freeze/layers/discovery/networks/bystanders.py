"""Networks within a module that take no part in its training: teachers, averages of weights, reference models.

Such a network does not count in percentages, slices of blocks and heights, and no schedule unfreezes it. It cannot
train (its parameters require no gradient, no optimizer holds them, or the code runs it under ``no_grad``), and nothing
that trains uses its output: a frozen backbone below a head that trains is not a bystander.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set

from torch import nn
from torch.optim.swa_utils import AveragedModel

from lightning_freeze.layers.discovery.module_tree import WRAPPERS, Node, words_of
from lightning_freeze.layers.discovery.networks.connections import holder_of
from lightning_freeze.layers.forward_source.value_flow.flow import ValueFlow, is_within

#: Words in the names of networks that others are compared with, and that are not trained.
_COMPARED = frozenset({"teacher", "ema", "ref", "reference", "momentum", "averaged", "average", "swa", "shadow"}) | {
    "target"
}
#: Words in the names of networks that are part of a loss.
_LOSSES = frozenset({"loss", "criterion", "perceptual", "lpips", "metric"})

#: Depth of the search for networks, in named containers; deeper modules are parts of a model.
_DEEPEST = 3

Trains = Callable[[nn.Parameter], bool]


def find_bystanders(root: Node, optimized: Set[int] | None = None) -> list[Node]:
    """Find the networks that take no part in training.

    Args:
        root: Tree of the whole module.
        optimized: ``id`` of all parameters that an optimizer holds, where that is known.

    Returns:
        Networks, none of them inside another; empty if nothing that trains would remain.
    """

    def trains(parameter: nn.Parameter) -> bool:
        return parameter.requires_grad and (optimized is None or id(parameter) in optimized)

    averages = [node for node in root.walk() if isinstance(node.module, AveragedModel) and node is not root]
    inside = {id(below) for node in averages for below in node.walk()}
    rest = [
        p for node in root.walk() if id(node) not in inside for p in node.module._parameters.values() if p is not None
    ]
    if not any(map(trains, rest)):
        return averages if rest else []
    candidates = [node for node in _candidates(root, trains, 0) if id(node) not in inside]
    networks = [node for node in candidates if node.weights > 1 and _is_separate_network(node, trains)]
    smaller = [
        node
        for node in candidates
        if node.weights <= 1 and _is_behind(node, networks) and _is_separate_network(node, trains)
    ]
    return [*averages, *networks, *smaller]


def _candidates(node: Node, trains: Trains, depth: int) -> Iterator[Node]:
    """The largest parts that cannot train."""
    if hasattr(node.module, "modules_to_save"):
        return  # a copy that an adapter keeps, see `unused_copies`
    for child in node.children:
        if not child.parameters:
            continue
        if not _any_trains(child, trains) or _is_run_without_gradient(child):
            yield child
        elif depth < _DEEPEST:
            yield from _candidates(child, trains, depth + (child.key not in WRAPPERS and not child.is_list))


def _any_trains(node: Node, trains: Trains) -> bool:
    return any(trains(p) for below in node.walk() for p in below.module._parameters.values() if p is not None)


def _is_run_without_gradient(node: Node) -> bool:
    """Whether the code of the whole module runs this child under ``no_grad`` only, and others with gradients."""
    if node.weights < 2 or node.parent is None or node.parent.is_list or not _is_whole(node.parent):
        return False
    flow = node.parent.flow
    calls = flow.calls_of(node.key)
    return bool(calls) and not any(c.has_gradient for c in calls) and any(c.has_gradient for c in flow.calls)


def _is_whole(node: Node) -> bool:
    """Whether a module is the root, or holds all parameters of it."""
    return node.parent is None or (node.parameters == node.parent.parameters and _is_whole(node.parent))


def _is_behind(node: Node, networks: list[Node]) -> bool:
    """Whether a single layer uses the output of one of the networks."""
    place = holder_of(node)
    return place is not None and any(
        other.parent is node.parent and place[0].flow.feeds(other.key, node.key) for other in networks
    )


def _is_separate_network(node: Node, trains: Trains) -> bool:
    """Whether a part that cannot train is a network of its own, rather than a part of what trains."""
    place = holder_of(node)
    if place is None:
        return False
    holder, path = place
    flow = holder.flow
    is_compared = bool(words_of(node.key) & _COMPARED)
    if not flow.calls or any(is_within(path, other) for other in flow.passed_on):
        return is_compared
    if not flow.runs(path):
        return (holder.parent is None and not _is_registered_twice(node)) or is_compared
    if _reaches_training(holder, path, trains) or _returns_to_training(holder, path, trains):
        return False
    if flow.returned and not is_compared and not _is_returned(flow, path):
        return False  # its output is used outside of the code that is read, for example by a hook
    recorded = {source for call in flow.calls for source in call.sources if not is_within(source, path)}
    fed = any(
        flow.feeds(source, path, skip=lambda call: not call.has_gradient)
        for source in recorded
        if _trains(holder, source, trains)
    )
    words = words_of(node.key) | words_of(node.class_name)
    return not fed or flow.is_discriminator(path) or flow.is_run_again(path) or bool(words & _LOSSES)


def _is_registered_twice(node: Node) -> bool:
    """Whether a module or a part of it is also registered elsewhere, where other code may run it."""
    root = node
    while root.parent is not None:
        root = root.parent
    inside = {id(below) for below in node.walk()}
    return any(id(one) in inside for other in root.walk() if id(other) not in inside for one in other.shared.values())


def _reaches_training(holder: Node, path: str, trains: Trains) -> bool:
    return any(_trains(holder, other, trains) for other in holder.flow.reached_from(path))


def _returns_to_training(holder: Node, path: str, trains: Trains) -> bool:
    """Whether the module that holds a part returns its output to code that feeds it to something that trains."""
    returned = _is_returned(holder.flow, path)
    place = holder_of(holder) if returned else None
    if place is None:
        return returned and holder.parent is not None
    return _reaches_training(*place, trains) or _returns_to_training(*place, trains)


def _is_returned(flow: ValueFlow, path: str) -> bool:
    """Whether the output of a part reaches what the module returns."""
    if any(is_within(other, path) or is_within(path, other) for other in flow.returned):
        return True
    return bool(flow.reached_from(path) & flow.returned)


def _trains(holder: Node, path: str, trains: Trains) -> bool:
    """Whether anything under a name trains; the name of a list stands for all of its elements."""
    module: nn.Module = holder.module
    for key in path.split("."):
        if key in module._parameters:
            parameter = module._parameters[key]
            return parameter is not None and trains(parameter)
        below = module._modules.get(key)
        if below is None:
            break
        module = below
    return any(map(trains, module.parameters()))
