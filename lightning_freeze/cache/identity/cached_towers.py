"""The towers of a module as the cache sees them: where the inputs come in, and the blocks in their order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from torch import nn
from torch.nn import Parameter

from lightning_freeze.layers import Layer, LayerStack


@dataclass(eq=False)
class CachedTower:
    """One stack of blocks and the module that turns model inputs into what flows through them.

    Attributes:
        name: Name of the tower, ``""`` for a model with a single stack.
        entry: The module whose arguments determine everything that the blocks compute.
        entry_name: Its full name.
        blocks: The blocks, first to last.
        steps: The parameters of each step of the depth order: first of all that runs before the blocks, then of each
            block.
        stems: The modules before the blocks, as large as they come.
        inside: Smaller modules that hold all of the blocks too, the largest first.
    """

    name: str
    entry: nn.Module
    entry_name: str
    blocks: list[nn.Module]
    steps: list[list[Parameter]]
    stems: list[nn.Module] = field(default_factory=list)
    inside: list[nn.Module] = field(default_factory=list)

    @property
    def label(self) -> str:
        """What messages call it."""
        return f"tower {self.name!r}" if self.name else "the model"

    def boundary(self, trains: Callable[[Parameter], bool] = lambda p: p.requires_grad) -> int:
        """How many blocks stand in the frozen prefix; 0 if anything before them trains.

        Args:
            trains: Says of a parameter whether it trains; by default its ``requires_grad``.
        """
        for number, parameters in enumerate(self.steps):
            if any(map(trains, parameters)):
                return max(0, number - 1)
        return len(self.blocks)

    def inner(self) -> CachedTower | None:
        """The same blocks with the next smaller module as the entry, if there is one."""
        if not self.inside:
            return None
        return replace(self, entry=self.inside[0], entry_name="", stems=[], inside=self.inside[1:])

    def around(self) -> list[nn.Module]:
        """The modules that hold all of the blocks or some of them, the entry first."""
        blocks = {id(block) for block in self.blocks}
        return [m for m in self.entry.modules() if any(id(x) in blocks for x in m.modules() if x is not m)]

    def prefix_modules(self, boundary: int) -> list[nn.Module]:
        """All modules that run before the boundary: those of the first blocks and of the stems."""
        return [module for root in (*self.stems, *self.blocks[:boundary]) for module in root.modules()]


class Structure:
    """Notices when modules or parameters are replaced, added or taken away. Quick enough for every forward pass.

    Args:
        root: The module to watch.
    """

    def __init__(self, root: nn.Module) -> None:
        self._owners = list(root.modules())
        self._parts = self._look()

    def is_same(self) -> bool:
        """Whether everything is where it was."""
        return self._parts == self._look()

    def _look(self) -> list[int]:
        return [id(part) for m in self._owners for parts in (m._modules, m._parameters) for part in parts.values()]


def find_towers(stack: LayerStack) -> tuple[list[CachedTower], list[str]]:
    """The towers of a module that a prefix can be cut from.

    Args:
        stack: The layers of the module.

    Returns:
        The towers in the order of the data flow, and for each one that cannot be used the reason.
    """
    names = {id(m): name for name, m in stack.module.named_modules()}
    # Also those of networks that take no part in training: a frozen teacher is computed once too.
    blocks = [layer for layer in stack if layer.is_block]
    labels = list(dict.fromkeys(layer.tower for layer in blocks))
    members = {label: [layer for layer in blocks if layer.tower == label] for label in labels}
    towers: list[CachedTower] = []
    problems: list[str] = []
    for label, layers in members.items():
        others = [_block_module(stack, layer) for other, ls in members.items() if other != label for layer in ls]
        try:
            towers.append(_tower(stack, label, layers, [m for m in others if m is not None], names))
        except ValueError as problem:
            problems.append(str(problem))
    return towers, problems if members else ["it has no blocks that could be skipped"]


def boundaries_ahead(
    schedules: Sequence[Sequence[tuple[Sequence[Parameter], Sequence[nn.Module]]]], tower: CachedTower
) -> list[int]:
    """The boundaries that phases to come will have, the next one first.

    Args:
        schedules: What each schedule holds frozen, the parameters and the modules, now and in each phase to come.
        tower: The tower.
    """
    found: list[int] = []
    for now, *later in schedules:
        held = {id(p) for p in now[0]}
        for parameters, _ in later:
            freed = held - {id(p) for p in parameters}
            boundary = tower.boundary(lambda p, freed=freed: p.requires_grad or id(p) in freed)  # type: ignore[misc]
            if boundary and boundary not in found:
                found.append(boundary)
    return found


def _tower(
    stack: LayerStack, label: str, layers: Sequence[Layer], others: Sequence[nn.Module], names: dict[int, str]
) -> CachedTower:
    blocks: list[nn.Module] = []
    for layer in layers:
        module = _block_module(stack, layer)
        if layer.repeats > 1:
            raise ValueError(f"layer {layer.name!r} runs {layer.repeats} times in one forward pass")
        if module is None:
            raise ValueError(f"layer {layer.name!r} is no single module that takes and returns hidden states")
        blocks.append(module)
    path = _ancestors(stack.module, blocks, names)
    alone = [m for m in path if not any(_holds(m, other) for other in others)] or path[-1:]
    root = alone[-1]
    first = [x for x in stack if x.kind == "embeddings" and x.tower in ("", label)]
    own = {id(p) for p in root.parameters()}
    wanted = {id(p) for layer in (*first, *layers) for p in layer.parameters() if id(p) in own}
    entry = next((m for m in alone if wanted <= {id(p) for p in m.parameters()}), root)
    early = [p for layer in first for p in layer.parameters() if id(p) in {id(q) for q in entry.parameters()}]
    steps = [early, *(layer.parameters() for layer in layers)]
    stems = _stems(entry, {id(p) for p in early}, blocks)
    inside = path[: path.index(entry)][::-1]
    return CachedTower(label, entry, names.get(id(entry), ""), blocks, steps, stems, inside)


def _block_module(stack: LayerStack, layer: Layer) -> nn.Module | None:
    """The module of a block that hidden states flow through: the largest of those that make up the layer."""
    named: dict[str, nn.Module] = dict(stack.module.named_modules(remove_duplicate=False))
    found = [named[prefix] for prefix in layer.prefixes if prefix in named]
    if not found:
        return None
    sizes = [sum(1 for p in module.parameters() if p.dim() >= 2) for module in found]
    largest = max(sizes)
    if sizes.count(largest) > 1 or isinstance(found[sizes.index(largest)], (nn.ModuleList, nn.ModuleDict)):
        return None
    return found[sizes.index(largest)]


def _ancestors(root: nn.Module, blocks: Sequence[nn.Module], names: dict[int, str]) -> list[nn.Module]:
    """The modules that hold all of the blocks and can be called, the innermost first."""
    paths = [names[id(block)].split(".") for block in blocks]
    common: list[str] = []
    for parts in zip(*(path[:-1] for path in paths), strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    chain = [root.get_submodule(".".join(common[:depth])) for depth in range(len(common), -1, -1)]
    return [m for m in chain if not isinstance(m, (nn.ModuleList, nn.ModuleDict))]


def _holds(module: nn.Module, other: nn.Module) -> bool:
    return any(m is other for m in module.modules())


def _stems(entry: nn.Module, early: set[int], blocks: Sequence[nn.Module]) -> list[nn.Module]:
    """The largest modules below the entry that hold nothing but parameters of the embeddings."""
    inner = {id(m) for block in blocks for m in block.modules()}
    found: list[nn.Module] = []

    def visit(module: nn.Module) -> None:
        for child in module.children():
            parameters = [id(p) for p in child.parameters()]
            if id(child) in inner or not parameters:
                continue
            callable_ = not isinstance(child, (nn.ModuleList, nn.ModuleDict))
            if callable_ and early.issuperset(parameters) and not any(id(m) in inner for m in child.modules()):
                found.append(child)
            else:
                visit(child)

    visit(entry)
    return found
