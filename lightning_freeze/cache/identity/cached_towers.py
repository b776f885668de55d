"""The towers of a module as the cache sees them: the module that receives the inputs, and the blocks in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from operator import attrgetter, eq, is_
from typing import Any

from torch import nn
from torch.nn import Parameter

from lightning_freeze.cache.identity.unsupported import Unsupported, reason_of
from lightning_freeze.layers import Layer, LayerStack


@dataclass(eq=False)
class CachedTower:
    """One stack of blocks, and the module whose ``forward`` runs them.

    Attributes:
        name: Name of the tower, ``""`` for a model with a single stack.
        entry: The module whose arguments determine everything that the blocks compute.
        entry_name: Its full name.
        blocks: The blocks, first to last.
        steps: The parameters in depth order: first those of everything before the blocks, then those of each block.
        embedding_modules: The largest modules that run before the blocks and hold nothing else.
        smaller_entries: Smaller modules that contain all of the blocks too, the largest first.
        is_sharded: Whether the strategy shards the module, so that all ranks must run the same layers.
        gathers: Whether parameters are exchanged for gathered ones in each forward pass (FSDP2).
        computation: What the sharded tower computes differently from the same one on one device.
    """

    name: str
    entry: nn.Module
    entry_name: str
    blocks: list[nn.Module]
    steps: list[list[Parameter]]
    embedding_modules: list[nn.Module] = field(default_factory=list)
    smaller_entries: list[nn.Module] = field(default_factory=list)
    is_sharded: bool = False
    gathers: bool = False
    computation: str = ""

    @property
    def label(self) -> str:
        """The name to use in messages."""
        return f"tower {self.name!r}" if self.name else "the model"

    def boundary(self, trains: Callable[[Parameter], bool] = attrgetter("requires_grad")) -> int:
        """Return the number of blocks in the frozen prefix; 0 if anything before the blocks trains.

        Args:
            trains: Returns whether a parameter trains; by default its ``requires_grad``.
        """
        for number, parameters in enumerate(self.steps):
            if any(map(trains, parameters)):
                return max(0, number - 1)
        return len(self.blocks)

    def with_smaller_entry(self) -> CachedTower | None:
        """Return the same blocks with the next smaller module as the entry, ``None`` if there is none."""
        if not self.smaller_entries:
            return None
        entry, *smaller = self.smaller_entries
        return replace(self, entry=entry, entry_name="", embedding_modules=[], smaller_entries=smaller)

    def path_of(self, module: nn.Module, name: str) -> str:
        """Return the full name of an attribute.

        Args:
            module: A module in the entry.
            name: The name of the attribute in it.
        """
        inside = next((path for path, m in self.entry.named_modules() if m is module), "")
        return ".".join(filter(None, (self.entry_name, inside, name)))

    def enclosing_modules(self) -> list[nn.Module]:
        """Return the modules that contain any of the blocks, the entry first."""
        blocks = {id(block) for block in self.blocks}
        return [m for m in self.entry.modules() if any(id(x) in blocks for x in m.modules() if x is not m)]

    def prefix_modules(self, boundary: int) -> list[nn.Module]:
        """Return all modules that run before the boundary, in the embeddings and the first blocks.

        Args:
            boundary: Number of blocks in the prefix.
        """
        return [module for root in (*self.embedding_modules, *self.blocks[:boundary]) for module in root.modules()]


class ModuleStructure:
    """Notices when modules or parameters are replaced, added or removed. Quick enough for every forward pass.

    Args:
        root: The module whose structure is compared.
        by_name: Whether parameters count as the same as long as their names are. Under FSDP2 they are exchanged for
            gathered ones in each forward pass.
    """

    def __init__(self, root: nn.Module, by_name: bool = False) -> None:
        self._by_name = by_name
        self._owners = list(root.modules())
        self._parts, self._sizes = self._read(), self._read_sizes()

    def is_same(self) -> bool:
        """Whether the structure is the same as when this object was made."""
        now = self._read()
        same = eq if self._by_name else is_
        return self._read_sizes() == self._sizes and len(now) == len(self._parts) and all(map(same, now, self._parts))

    def _read_sizes(self) -> list[int]:
        """How many modules and parameters each module has: the parts alone do not show which module has them."""
        return [
            *map(len, map(attrgetter("_modules"), self._owners)),
            *map(len, map(attrgetter("_parameters"), self._owners)),
        ]

    def _read(self) -> list[Any]:
        # Without Python code for each module: this runs in each forward pass.
        modules = chain.from_iterable(map(dict.values, map(attrgetter("_modules"), self._owners)))
        parameters = map(attrgetter("_parameters"), self._owners)
        if self._by_name:
            return [*map(id, modules), *chain.from_iterable(parameters)]
        return [*modules, *chain.from_iterable(map(dict.values, parameters))]


def find_towers(stack: LayerStack) -> tuple[list[CachedTower], dict[str, str]]:
    """Find the towers of a module whose prefix can be cached.

    Args:
        stack: The layers of the module.

    Returns:
        The towers in the order of the data flow, and for each tower that cannot be cached the reason, by name.
    """
    names = {id(m): name for name, m in stack.module.named_modules()}
    # Also those of networks that take no part in training: a frozen teacher is computed once too.
    blocks = [layer for layer in stack if layer.is_block]
    labels = list(dict.fromkeys(layer.tower for layer in blocks))
    members = {label: [layer for layer in blocks if layer.tower == label] for label in labels}
    towers: list[CachedTower] = []
    problems: dict[str, str] = {}
    for label, layers in members.items():
        others = [_block_module(stack, layer) for other, ls in members.items() if other != label for layer in ls]
        try:
            towers.append(_tower(stack, label, layers, [m for m in others if m is not None], names))
        except Exception as problem:  # modules may be put together in any way
            problems[label] = reason_of(problem)
    return towers, problems if members else {"": "it has no blocks that could be skipped"}


def frozen_modules(module: nn.Module, known: set[int], path: str = "") -> list[str]:
    """Return the names of the largest modules with weight matrices that are frozen as a whole, except for embeddings.

    Args:
        module: The module to search.
        known: The parameters, by id, that such a module may not hold.
        path: The name of the module.
    """
    own = list(module.parameters())
    is_apart = not any(p.requires_grad or id(p) in known for p in own)
    looked_up = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    if path and is_apart and any(p.dim() > 1 and id(p) not in looked_up for p in own):
        return [path]
    parts = ((child, f"{path}.{name}".lstrip(".")) for name, child in module.named_children())
    return [found for child, name in parts for found in frozen_modules(child, known, name)]


def boundaries_ahead(
    schedules: Sequence[Sequence[tuple[Sequence[Parameter], Sequence[nn.Module]]]], tower: CachedTower
) -> list[int]:
    """Return the boundaries that later phases will have, the next one first.

    Args:
        schedules: The parameters and modules that each schedule keeps frozen, now and in each later phase.
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
            raise Unsupported(f"layer {layer.name!r} runs {layer.repeats} times in one forward pass")
        if module is None:
            several = f", but {', '.join(layer.prefixes[:3])}" if len(layer.prefixes) > 1 else ""
            raise Unsupported(f"layer {layer.name!r} is no single module that takes and returns hidden states{several}")
        blocks.append(module)
    path = _ancestors(stack.module, blocks, names)
    own_only = [m for m in path if not any(_holds(m, other) for other in others)] or path[-1:]
    root = own_only[-1]
    first = [x for x in stack if x.kind == "embeddings" and x.tower in ("", label)]
    own = {id(p) for p in root.parameters()}
    wanted = {id(p) for layer in (*first, *layers) for p in layer.parameters() if id(p) in own}
    entry = next((m for m in own_only if wanted <= {id(p) for p in m.parameters()}), root)
    early = [p for layer in first for p in layer.parameters() if id(p) in {id(q) for q in entry.parameters()}]
    steps = [early, *(layer.parameters() for layer in layers)]
    embedding_modules = _embedding_modules(entry, {id(p) for p in early}, blocks)
    smaller = path[: path.index(entry)][::-1]
    return CachedTower(label, entry, names.get(id(entry), ""), blocks, steps, embedding_modules, smaller)


def _block_module(stack: LayerStack, layer: Layer) -> nn.Module | None:
    """Return the module of a layer that hidden states flow through: the largest one."""
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
    """Return the callable modules that contain all of the blocks, the innermost first."""
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


def _embedding_modules(entry: nn.Module, early: set[int], blocks: Sequence[nn.Module]) -> list[nn.Module]:
    """Return the largest modules below the entry that hold only parameters of the embeddings."""
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
