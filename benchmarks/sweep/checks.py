"""What must hold for the layers of every model."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from lightning_freeze.layers import LayerStack


def partition(stack: LayerStack) -> str:
    """(a) Every parameter in exactly one layer: what does not hold, ``""`` if all does."""
    expected = {id(p): name for name, p in stack.module.named_parameters()}
    found: dict[int, int] = {}
    for layer in stack:
        for p in layer.parameters():
            found[id(p)] = found.get(id(p), 0) + 1
    missing = [name for key, name in expected.items() if key not in found]
    twice = [expected.get(key, "?") for key, count in found.items() if count > 1 or key not in expected]
    modules = [id(m) for layer in stack for m in layer.modules()]
    if missing:
        return f"in no layer: {missing[:3]}"
    if twice:
        return f"in two layers: {twice[:3]}"
    return "a module stands in two layers" if len(modules) != len(set(modules)) else ""


def call(module: nn.Module, inputs: Any) -> Any:
    """One forward pass."""
    return module(**inputs) if isinstance(inputs, Mapping) else module(*inputs)


class _Uses(TorchFunctionMode):
    """Notes when each parameter is first an argument of a torch function."""

    def __init__(self, wanted: set[int]) -> None:
        super().__init__()
        self.wanted = wanted
        self.order: list[int] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name not in _LOOKS and not (name.endswith("_") and not name.endswith("__")):
            for value in _flat([*args, *(kwargs or {}).values()]):
                if id(value) in self.wanted:
                    self.wanted.discard(id(value))
                    self.order.append(id(value))
        return func(*args, **(kwargs or {}))


_LOOKS = {
    "__get__",
    "dim",
    "size",
    "numel",
    "is_floating_point",
    "data_ptr",
    "element_size",
    "type",
    "__set__",
    "is_complex",
}


def _flat(values: Sequence[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _flat(value)
        elif isinstance(value, torch.Tensor):
            yield value


def executed(stack: LayerStack, inputs: Any) -> tuple[list[str], list[int]]:
    """Layers in the order in which a module of theirs first runs, and parameters in the order of their first use."""
    order: list[str] = []

    def note(name: str) -> Any:
        return lambda *_: None if name in order else order.append(name)

    handles = []
    for layer in stack:
        for module in layer.modules():
            if any(stack.layer_of(p) is layer for p in module._parameters.values() if p is not None):
                handles.append(module.register_forward_pre_hook(note(layer.name)))
    uses = _Uses({id(p) for p in stack.module.parameters()})
    with torch.no_grad(), uses:
        call(stack.module, inputs)
    for handle in handles:
        handle.remove()
    return order, uses.order


def order(stack: LayerStack, ran: list[str], names: Sequence[str] = ()) -> str:
    """(b) Layers run in the order of the stack, or in that of ``names``; bystanders may run at any time."""
    apart = {layer.name for layer in stack.bystanders}
    ran = [name for name in ran if name not in apart]
    expected = [name for name in names or stack.names if name in ran]
    if ran == expected:
        return ""
    first = next(i for i, (a, b) in enumerate(zip(ran, expected, strict=True)) if a != b)
    return f"{ran[first]} runs where {expected[first]} should (ran {_short(ran)})"


def placement(
    stack: LayerStack, used: list[int], names: Sequence[str] = (), apart: Collection[int] = frozenset()
) -> str:
    """(b) No parameter is used after the next block has begun, or before the block before it has, but for ``apart``."""
    step = {key: i for i, key in enumerate(used) if key not in apart}
    tied = {tie.name for tie in stack.ties}
    towers = len(stack.towers) > 1
    layers = [stack[name] for name in names or stack.names if not stack[name].is_bystander]
    uses = {layer.name: [step[id(p)] for p in layer.parameters() if id(p) in step] for layer in layers}
    blocks = [(i, layer) for i, layer in enumerate(layers) if layer.is_block and uses[layer.name]]
    # A block begins with the first parameter of its first module.
    for i, layer in enumerate(layers):
        later = [min(uses[b.name]) for j, b in blocks if j > i]
        earlier = [max(uses[b.name]) for j, b in blocks if j < i]
        for name, p in layer.named_parameters():
            if id(p) not in step or name in tied:
                continue
            # Token embeddings of a language model behind another tower: they run first, but perhaps not in this pass.
            late = layer.kind == "embeddings" and towers
            if later and not late and step[id(p)] > min(later):
                return f"{name} of {layer.name} is used after a later block has begun"
            if earlier and step[id(p)] < max(earlier) and layer.kind != "embeddings":
                return f"{name} of {layer.name} is used before an earlier block is done"
    return ""


def tensors(output: Any, depth: int = 0) -> Iterator[torch.Tensor]:
    """All tensors in an output."""
    if isinstance(output, torch.Tensor):
        yield output
    elif depth < 8:
        if isinstance(output, Mapping):
            output = list(output.values())
        elif hasattr(output, "__dataclass_fields__"):
            output = [getattr(output, f) for f in output.__dataclass_fields__]
        if isinstance(output, list | tuple):
            for part in output:
                yield from tensors(part, depth + 1)


def total(output: Any) -> torch.Tensor:
    """The sum of everything in an output that carries a gradient."""
    parts = [t.float().sum() for t in tensors(output) if t.requires_grad and t.is_floating_point()]
    parts += [t.abs().sum() for t in tensors(output) if t.requires_grad and t.is_complex()]
    return sum(parts, torch.zeros(()))


def gradients(module: nn.Module, inputs: Any) -> set[int]:
    """Parameters that get a gradient."""
    module.zero_grad(set_to_none=True)
    torch.manual_seed(0)
    loss = total(call(module, inputs))
    if loss.requires_grad:
        loss.backward()
    return {id(p) for p in module.parameters() if p.grad is not None}


def cuts(count: int) -> list[int]:
    """How many layers are frozen, in turn: several depths, the half always among them."""
    if count <= 4:
        return list(range(1, count))
    return sorted({1, count // 2, count - 1})


def gradient(
    stack: LayerStack,
    inputs: Any,
    given: Mapping[int, bool],
    names_in_order: Sequence[str] = (),
    apart: Collection[int] = frozenset(),
) -> tuple[str, str, bool]:
    """(d) Frozen layers get no gradient, all others do, and backward stops.

    Args:
        stack: The layers.
        inputs: What the model is run with.
        given: Whether each parameter requires a gradient, by its id.
        names_in_order: Names of all layers, if they run in another order than that of the stack.
        apart: Modules and parameters, by id, of which the stack says itself that later layers feed them.

    Returns:
        What does not hold; the cause of a leak; whether trainable parameters feed into frozen modules of ``apart``.
    """
    module = stack.module
    reachable = gradients(module, inputs)
    if not reachable:
        raise RuntimeError("no output carries a gradient")
    layers = [stack[name] for name in names_in_order or stack.names]
    names = {id(p): name for name, p in module.named_parameters()}
    leak, excused = "", False
    for count in cuts(len(layers)):
        for layer in layers[:count]:
            for p in layer.parameters():
                p.requires_grad_(False)
        rest = {id(p) for layer in layers[count:] for p in layer.parameters()}
        if rest & reachable:
            with _Watch(layers[:count], apart) as watch:
                found = gradients(module, inputs)
            if found != rest & reachable:
                wrong = [names[k] for k in (found ^ (rest & reachable))]
                where = "missing" if set(wrong) <= {names[k] for k in rest} else "too many"
                return f"gradients {where} with {layers[count - 1].name} frozen: {wrong[:3]}", leak, excused
            leak = leak or watch.cause(names, layers[count - 1].name)
            excused = excused or watch.excused(names)
        for p in module.parameters():
            p.requires_grad_(given[id(p)])
    return "", leak, excused


class _Watch:
    """Watches the outputs of frozen layers' modules for tensors that require a gradient."""

    def __init__(self, frozen: Sequence[Any], apart: Collection[int]) -> None:
        self._frozen = frozen
        self._apart = apart
        self._leaks: list[tuple[str, str, torch.Tensor]] = []
        self._leaks_apart: list[tuple[str, str, torch.Tensor]] = []
        self._seen: set[int] = set()

    def __enter__(self) -> _Watch:
        self._handles = [
            module.register_forward_hook(self._hook(layer.name))
            for layer in self._frozen
            for module in layer.modules()
            if any(True for _ in module.parameters())
        ]
        return self

    def _hook(self, name: str) -> Any:
        def look(module: nn.Module, _: Any, output: Any) -> None:
            # A module that later layers use once more gets inputs from these: its first use counts.
            first = id(module) not in self._seen
            self._seen.add(id(module))
            leaks = self._leaks_apart if id(module) in self._apart else self._leaks
            if first and not leaks:
                found = next((t for t in tensors(output) if t.requires_grad), None)
                if found is not None:
                    leaks.append((name, type(module).__name__, found))

        return look

    def __exit__(self, *_: Any) -> None:
        for handle in self._handles:
            handle.remove()

    def excused(self, names: Mapping[int, str]) -> bool:
        """Whether a trainable parameter feeds into a module that is set apart."""
        return any(id(leaf) in names for *_, tensor in self._leaks_apart for leaf in _leaves(tensor))

    def cause(self, names: Mapping[int, str], last: str) -> str:
        """Which trainable tensor feeds into a frozen layer, but for the modules that are set apart."""
        if not self._leaks:
            return ""
        layer, kind, tensor = self._leaks[0]
        leaves = list(_leaves(tensor))
        found = [names[id(p)] for p in leaves if id(p) in names]
        what = f"parameter {found[0]}" if found else "a tensor that the model itself makes require grad"
        return f"with layers up to {last} frozen, {kind} of {layer} is fed by {what}"


def _leaves(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    if tensor.grad_fn is None:
        yield tensor
        return
    stack, seen = [tensor.grad_fn], set()
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        stack += [n for n, _ in node.next_functions if n is not None]


def _short(names: Sequence[str]) -> str:
    text = " ".join(names)
    return text if len(text) < 160 else text[:157] + "..."
