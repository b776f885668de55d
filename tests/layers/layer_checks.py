"""Properties that the layers of every model must have."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any

import torch
from torch import nn

from lightning_freeze.layers import LayerStack


def partition_errors(stack: LayerStack) -> list[str]:
    """Parameters and modules that stand in no layer or in two."""
    names = [name for layer in stack for name, _ in layer.named_parameters()]
    expected = [name for name, _ in stack.module.named_parameters()]
    errors = [f"in no layer: {name}" for name in expected if name not in names]
    errors += [f"twice or unknown: {name}" for name in names if name not in expected or names.count(name) > 1]
    modules = [id(module) for layer in stack for module in layer.modules()]
    return errors + ["a module stands in two layers"] * (len(modules) != len(set(modules)))


def run(module: nn.Module, inputs: Sequence[Any] | Mapping[str, Any]) -> Any:
    return module(**inputs) if isinstance(inputs, Mapping) else module(*inputs)


def executed_layers(stack: LayerStack, inputs: Sequence[Any] | Mapping[str, Any]) -> list[str]:
    """Layers in the order in which a module of theirs that uses parameters first runs."""
    order: list[str] = []

    def note(name: str) -> Any:
        return lambda *_: None if name in order else order.append(name)

    handles = []
    for layer in stack:
        for module in layer.modules():
            if any(stack.layer_of(p) is layer for p in module._parameters.values() if p is not None):
                handles.append(module.register_forward_pre_hook(note(layer.name)))
    with torch.no_grad():
        run(stack.module, inputs)
    for handle in handles:
        handle.remove()
    return order


def order_errors(stack: LayerStack, inputs: Sequence[Any] | Mapping[str, Any]) -> list[str]:
    stack.module.eval()
    order = executed_layers(stack, inputs)
    return [] if order == [name for name in stack.names if name in order] else [f"ran in the order {order}"]


def total(output: Any) -> torch.Tensor:
    """The sum of every floating tensor in an output that carries a gradient."""
    if isinstance(output, torch.Tensor):
        return output.float().sum() if output.requires_grad else torch.zeros(())
    if isinstance(output, Mapping):
        output = list(output.values())
    return (
        sum((total(part) for part in output), torch.zeros(())) if isinstance(output, list | tuple) else torch.zeros(())
    )


def _gradients(module: nn.Module, inputs: Any) -> set[int]:
    module.zero_grad(set_to_none=True)
    torch.manual_seed(0)
    total(run(module, inputs)).backward()
    return {id(p) for p in module.parameters() if p.grad is not None}


def gradient_errors(stack: LayerStack, inputs: Sequence[Any] | Mapping[str, Any]) -> list[str]:
    """Freeze ever more layers from the input up: gradients must arrive exactly in the others."""
    stack.module.train()
    reachable = _gradients(stack.module, inputs)
    layers = list(stack)
    errors = []
    for count in range(1, len(layers)):
        for layer in layers[:count]:
            for parameter in layer.parameters():
                parameter.requires_grad_(False)
        rest = {id(p) for layer in layers[count:] for p in layer.parameters()}
        if not rest & reachable:
            break
        if _gradients(stack.module, inputs) != rest & reachable:
            errors.append(f"with {layers[count - 1].name} frozen")
    return errors


def leak_errors(stack: LayerStack, inputs: Sequence[Any] | Mapping[str, Any]) -> list[str]:
    """Freeze half of the layers from the input up: no frozen module's output may need a gradient."""
    half = list(stack)[: max(1, len(stack) // 2)]
    for parameter in stack.module.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    for layer in half:
        for parameter in layer.parameters():
            parameter.requires_grad_(False)
    leaks: list[str] = []

    def look(name: str) -> Any:
        return lambda _module, _inputs, output: leaks.append(name) if total(output).requires_grad else None

    handles = [
        stack.module.get_submodule(prefix).register_forward_hook(look(layer.name))
        for layer in half
        for prefix in layer.prefixes
        if prefix in dict(stack.module.named_modules())
    ]
    run(stack.module, inputs)
    for handle in handles:
        handle.remove()
    return sorted(set(leaks))


def function_calls(work: Callable[[], Any]) -> int:
    """How many functions are called: a measure of speed that is the same on every machine."""
    calls = 0

    def count(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(before)
    return calls
