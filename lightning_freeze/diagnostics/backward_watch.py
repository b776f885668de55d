"""Observes one forward pass: which frozen layers return outputs that require grad, and why, as autograd knows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.autograd.graph import Node
from torch.utils.hooks import RemovableHandle

from lightning_freeze.layers.analysis.backward_extent import Leak, modules_requiring_input_grad, selector_of

if TYPE_CHECKING:
    from lightning_freeze.layers import Layer, LayerStack


_PROBE = "_lightning_freeze_probe"


def mark_probe(tensor: torch.Tensor) -> None:
    """Mark a tensor that requires grad only to observe its gradient; it is no reason for a backward pass."""
    setattr(tensor, _PROBE, True)


class BackwardWatch:
    """Watches a forward pass for frozen layers whose outputs require grad; costs nothing once it is closed.

    Args:
        stack: The layers, frozen as they are during the pass.
        on_seen: Called with the name of a layer when its output is first seen to require grad.
    """

    def __init__(self, stack: LayerStack, on_seen: Callable[[str], None] | None = None) -> None:
        self._stack = stack
        self._seen: dict[str, set[int]] = {}
        self._known: dict[Node, set[int]] = {}
        self._leaves: dict[int, torch.Tensor] = {}
        self._on_seen = on_seen
        modules = dict(stack.module.named_modules(remove_duplicate=False))
        # A dropout that is used in several places belongs to the first, so modules without parameters are left out.
        self._handles: list[RemovableHandle] = [
            modules[prefix].register_forward_hook(self._look(layer))
            for layer in stack
            if layer.parameters() and not any(p.requires_grad for p in layer.parameters())
            for prefix in layer.prefixes
            if prefix in modules and any(True for _ in modules[prefix].parameters())
            if not isinstance(modules[prefix], (nn.ModuleList, nn.ModuleDict))
        ]

    def close(self) -> list[Leak]:
        """Remove the hooks.

        Returns:
            The leaks that were seen, in the form of :func:`backward_leaks`; all are certain, and have the parameters
            that autograd names. Parameters that are in no layer have no source.
        """
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        leaves, self._leaves = self._leaves, {}
        self._known.clear()
        seen, self._seen = self._seen, {}
        names = {id(p): name for name, p in self._stack.module.named_parameters()}
        owners = {i: self._stack.layer_of(p) for i, p in leaves.items() if i in names and isinstance(p, nn.Parameter)}
        causes: dict[tuple[Any, ...], list[str]] = {}
        for layer, found in seen.items():
            sources = sorted({owner.index for i in found if (owner := owners.get(i)) is not None})
            homeless = tuple(sorted(names[i] for i in found if i in names and owners.get(i) is None))
            causes.setdefault((*sources, homeless, found <= names.keys()), []).append(layer)
        return [self._leak(layers, {i for layer in layers for i in seen[layer]}, names) for layers in causes.values()]

    def _leak(self, layers: list[str], found: set[int], names: Mapping[int, str]) -> Leak:
        blamed = [(i, name) for i, name in names.items() if i in found]
        parameters = {id(p): layer.name for layer in self._stack for p in layer.parameters()}
        sources = tuple(layer.name for layer in self._stack if layer.name in {parameters.get(i) for i, _ in blamed})
        asked = "" if found <= names.keys() else self._reason()
        order = tuple(layer.name for layer in self._stack if layer.name in layers)
        causes = tuple(name for _, name in blamed)
        fix = ",".join(sources)
        if self._stack.towers and not self._stack.from_groups:  # a layer may hold what feeds another tower
            fix = selector_of(self._stack, causes, lambda p: p.requires_grad)
        return Leak(order, sources, causes, fix, asked)

    def _reason(self) -> str:
        reasons = [reason for _, _, reason in modules_requiring_input_grad(self._stack.module)]
        return reasons[0] if reasons else "an input requires grad that is no parameter of the module"

    def _look(self, layer: Layer) -> Callable[..., None]:
        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            causes = {i for tensor in _tensors(output) if tensor.requires_grad for i in self._trace(tensor)}
            if not causes:
                return
            is_new = layer.name not in self._seen
            self._seen.setdefault(layer.name, set()).update(causes)
            if is_new and self._on_seen is not None:
                self._on_seen(layer.name)

        return look

    def _trace(self, tensor: torch.Tensor) -> set[int]:
        """Follow autograd from an output to the leaves; the graphs of lower outputs are not followed again."""
        if tensor.grad_fn is None:
            return self._leaf(tensor)
        open_, found, visited = [tensor.grad_fn], set[int](), set[Node]()
        while open_:
            node = open_.pop()
            if node in visited:
                continue
            visited.add(node)
            if node in self._known:
                found |= self._known[node]
            elif isinstance(leaf := getattr(node, "variable", None), torch.Tensor):
                found |= self._leaf(leaf)
            open_ += [below for below, _ in node.next_functions if below is not None and node not in self._known]
        self._known[tensor.grad_fn] = found
        return found

    def _leaf(self, tensor: torch.Tensor) -> set[int]:
        if hasattr(tensor, _PROBE):
            return set()
        self._leaves[id(tensor)] = tensor
        return {id(tensor)}


def _tensors(output: Any) -> Iterator[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        yield output
    elif isinstance(output, Mapping):
        for part in output.values():
            yield from _tensors(part)
    elif isinstance(output, (list, tuple)):
        for part in output:
            yield from _tensors(part)
