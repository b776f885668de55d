"""Where the backward pass stops when layers are frozen, and what makes it run further than it should.

A frozen layer needs no gradients of its own, but backward still runs through it as long as something that trains feeds
it. The answer follows from the structure: it needs no forward pass and no data, and works with meta parameters. Where
the structure cannot decide (several towers, layers from an explicit map), the answer is marked as not certain, and one
forward pass under a :class:`~lightning_freeze.diagnostics.backward_watch.BackwardWatch` decides.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import takewhile

from torch import nn

from lightning_freeze.layers.discovery.module_tree import words_of
from lightning_freeze.layers.layer import Layer, Layers

IN_TRAIN_MODE = "while it is in train mode"


@dataclass(frozen=True)
class Leak:
    """Frozen layers that backward still runs through.

    Attributes:
        layers: Names of these layers, in stack order.
        sources: Names of the layers that train and feed them; empty if no parameter of a layer is the cause.
        parameters: Full names of the trainable parameters in the sources.
        fix: Selector of what has to be frozen as well for backward to stop above the layers; empty where freezing
            does not help.
        reason: What makes an input require grad, where that is the cause and not a parameter; else empty.
        is_certain: Whether the structure alone proves it; else only a forward pass can tell.
    """

    layers: tuple[str, ...]
    sources: tuple[str, ...]
    parameters: tuple[str, ...]
    fix: str
    reason: str = ""
    is_certain: bool = True


def backward_leaks(stack: Layers, trainable: Collection[nn.Parameter] | None = None) -> list[Leak]:
    """Find the frozen layers that backward has to run through, and the cause.

    A layer counts as frozen if none of its parameters trains. Blocks with trainable adapters (LoRA) inside are not
    frozen, and layers that nothing trainable feeds (another tower, an encoder below a trainable decoder) do not leak.

    Args:
        stack: The layers.
        trainable: The parameters that count as trainable; by default those that require grad. Inputs that are
            made to require grad are reported in the latter case only, because that depends on the modules' modes.

    Returns:
        One entry for each set of layers with the same cause, from the input up.
    """
    flow = _Flow(stack)
    ids = None if trainable is None else {id(parameter) for parameter in trainable}

    def trains(parameter: nn.Parameter) -> bool:
        return parameter.requires_grad if ids is None else id(parameter) in ids

    sources = flow.sources(trains)
    training = {source.owner for source in sources}
    frozen = [layer for layer in stack if layer.parameters() and layer.name not in training]
    found: dict[tuple[int, ...], list[tuple[Layer, bool]]] = {}
    for layer in frozen:
        feeds = [flow.feeds(source, layer) for source in sources]
        feeding = tuple(i for i, answer in enumerate(feeds) if answer is not False)
        if feeding:
            found.setdefault(feeding, []).append((layer, any(feeds)))
    leaks = [_leak(stack, [sources[i] for i in feeding], through, trains) for feeding, through in found.items()]
    return leaks if trainable is not None else leaks + _input_leaks(stack, flow, frozen)


def _either(a: bool | None, b: bool | None) -> bool | None:
    return True if a or b else None if a is None or b is None else False


def _leak(
    stack: Layers,
    sources: list[_Source],
    through: list[tuple[Layer, bool]],
    trains: Callable[[nn.Parameter], bool],
) -> Leak:
    causes = dict.fromkeys(name for source in sources for name in source.parameters)
    owners = {source.owner for source in sources}
    return Leak(
        tuple(layer.name for layer, _ in through),
        tuple(layer.name for layer in stack if layer.name in owners),
        tuple(causes),
        selector_of(stack, causes, trains),
        is_certain=all(certain for _, certain in through),
    )


def selector_of(stack: Layers, names: Collection[str], trains: Callable[[nn.Parameter], bool]) -> str:
    """A selector of some trainable parameters: a layer where they are all that trains in it, otherwise globs.

    Args:
        stack: The layers.
        names: Full names of the parameters.
        trains: Whether a parameter trains. Parameters that do not train may be selected too.
    """
    terms: list[str] = []
    for layer in stack:
        training = [name for name, parameter in layer.named_parameters() if trains(parameter)]
        mine = [name for name in training if name in names]
        if mine:
            terms += [layer.name] if len(mine) == len(training) else _globs(stack, mine)
    return ",".join(terms)


def _globs(stack: Layers, names: list[str]) -> list[str]:
    """Globs for the largest parts of the module that hold these parameters and no others."""
    columns = zip(*(name.split(".") for name in names), strict=False)
    depth = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
    others = [name for layer in stack for name, _ in layer.named_parameters() if name not in names]
    terms: dict[str, None] = {}
    for name in names:
        part = ".".join(name.split(".")[: depth + 1]) + "."
        alone = name.startswith(part) and not any(other.startswith(part) for other in others)
        terms[f"{part}*" if alone else name] = None
    return list(terms)


def _input_leaks(stack: Layers, flow: _Flow, frozen: list[Layer]) -> list[Leak]:
    """Leaks that come from inputs, one for each module that makes them require grad."""
    leaks = []
    for name, module, reason in modules_requiring_input_grad(stack.module):
        layer = stack.layer_of_module(module)
        if layer is None:
            continue
        source = _Source(layer.name, layer, flow.towers_of([f"{name}."]), [])
        through = [x for x in frozen if x is layer or flow.feeds(source, x) is not False]
        certain = all(x is layer or flow.feeds(source, x) for x in through)
        if through:
            leaks.append(Leak(tuple(x.name for x in through), (), (), "", reason, certain))
    return leaks


def modules_requiring_input_grad(root: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Modules that make a tensor require grad even if no parameter does: full name, module and reason."""
    for name, module in root.named_modules():
        hooks = [getattr(hook, "__name__", "") for hook in module._forward_hooks.values()]
        if any(hook.startswith("make_inputs_require_grad") for hook in hooks):
            yield name, module, f"the output of {name} is made to require grad (enable_input_require_grads())"
        # The speech encoders of transformers do so for reentrant checkpointing, whether or not it is on.
        elif module.training and vars(module).get("_requires_grad") is True:
            yield name, module, f"{name} makes its own input require grad {IN_TRAIN_MODE}"


@dataclass
class _Source:
    """Trainable parameters that feed the same layers.

    Attributes:
        owner: Name of the layer that owns them.
        layer: The layer that uses them; for shared weights not the owner.
        towers: The towers that they are registered in; they feed these first.
        parameters: Their full names.
    """

    owner: str
    layer: Layer
    towers: frozenset[str]
    parameters: list[str]


class _Flow:
    """Which layers feed which, as far as structure tells."""

    def __init__(self, stack: Layers) -> None:
        self._stack = stack
        self._towers = {} if stack.from_groups else stack.towers
        blocks = {tower: [prefix for b in layers for prefix in b.prefixes] for tower, layers in self._towers.items()}
        self._roots = {tower: _root(tower, blocks) for tower in blocks}

    def sources(self, trains: Callable[[nn.Parameter], bool]) -> list[_Source]:
        ties: dict[str, list[str]] = {}
        for tie in self._stack.ties:
            ties.setdefault(tie.name, []).append(tie.used_by)
        found: dict[tuple[str, str, frozenset[str]], _Source] = {}
        for layer in self._stack:
            aliases = layer.aliases
            for name, parameter in layer.named_parameters():
                if not trains(parameter):
                    continue
                names = (name, *aliases.get(name, ()))
                towers = self.towers_of(names)
                for used_in in (layer, *(self._stack[other] for other in ties.get(name, ()))):
                    key = layer.name, used_in.name, towers
                    found.setdefault(key, _Source(layer.name, used_in, towers, [])).parameters.append(name)
        return list(found.values())

    def towers_of(self, names: Collection[str]) -> frozenset[str]:
        return frozenset(t for t, root in self._roots.items() if root and any(n.startswith(f"{root}.") for n in names))

    def feeds(self, source: _Source, layer: Layer) -> bool | None:
        """Whether what the source computes runs through a layer above it; ``None`` if only a forward pass can tell."""
        if source.layer.index >= layer.index:
            return False
        if self._stack.from_groups:
            return None  # the map gives an order, but does not say which groups run side by side
        if not self._towers:
            return True
        if layer.kind == "head" and not layer.tower:
            return None if any(self._has_own_embeddings(tower) for tower in list(self._towers)[1:]) else True
        starts = frozenset({source.layer.tower}) if source.layer.tower else source.towers
        if not starts:
            return None
        answer: bool | None = False
        for tower in starts:
            answer = _either(answer, self._reaches(tower, layer.tower))
        return answer

    def _reaches(self, tower: str, other: str) -> bool | None:
        if tower == other:
            return True
        order = list(self._towers)
        if tower not in order or other not in order:
            return None
        if order.index(tower) > order.index(other) or self._has_own_embeddings(other):
            return False
        # A text tower that can attend to images does not always do so.
        return True if len(order) == 2 and self._is_named_as_decoder(other) else None

    def _is_named_as_decoder(self, tower: str) -> bool:
        """Whether the name of a tower says that it always works on the output of another one."""
        aliases = [alias for alias, label in self._stack.tower_aliases.items() if label == tower]
        return bool({"decoder", "language", "lm", "llm"} & {w for name in (tower, *aliases) for w in words_of(name)})

    def _has_own_embeddings(self, tower: str) -> bool:
        """Whether a tower has embeddings of its own, so that the towers before it do not feed it."""
        return f"{tower}.embeddings" in self._stack


def _root(tower: str, blocks: Mapping[str, list[str]]) -> str:
    """Name of the highest module that holds the blocks of this tower and of no other."""
    others = [name for other, names in blocks.items() if other != tower for name in names]
    roots = Counter[str]()
    for name in blocks[tower]:
        parts = name.split(".")
        above = (".".join(parts[:depth]) for depth in range(1, len(parts)))
        # The names of blocks end in numbers, unlike that of a projector that belongs to the first block.
        roots[next((x for x in above if not any(o.startswith(f"{x}.") for o in others)), "")] += 1 + parts[-1].isdigit()
    return roots.most_common(1)[0][0]
