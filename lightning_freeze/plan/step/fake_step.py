"""One training step on fake tensors: measures its operations and its memory without computing anything.

Fake tensors (``torch._subclasses.fake_tensor``) have shapes, dtypes and devices, and no elements. So a step of a model
that is larger than the memory of the machine can be run, also of one that is on the meta device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import Parameter
from torch.optim import Optimizer

from lightning_freeze.plan.step.fake_optimizer import AnyValue, fake_optimizer, state_bytes
from lightning_freeze.plan.step.operations import OperationCounter, Work
from lightning_freeze.plan.step.silent_metrics import has_metrics, silent_metrics
from lightning_freeze.plan.step.stand_ins import stand_ins


@dataclass(frozen=True)
class MeasuredStep:
    """What one training step computes and keeps.

    Attributes:
        forward: Work of the forward pass and the loss, without ``prefix``.
        prefix: Work of the forward pass in the modules that a cache would skip.
        backward: Work of the backward pass.
        update: Work of the optimizers.
        gradients: Bytes of all gradients.
        states: Bytes of the optimizers' state after the step, for each parameter that has any.
        activations: Bytes that the forward pass keeps for the backward pass.
        hidden: Bytes of the hidden states that a cache would store for the batch.
    """

    forward: Work
    prefix: Work
    backward: Work
    update: Work
    gradients: int
    states: Mapping[Parameter, int]
    activations: int
    hidden: int


class _SavedTensors:
    """Counts what autograd keeps for the backward pass, each storage once, without the parameters."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self._seen = {p.untyped_storage()._cdata for p in parameters}
        self._held: list[Tensor] = []  # so that no other storage gets the same address
        self.bytes = 0

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen.add(storage._cdata)
            self._held.append(tensor)
            self.bytes += storage.nbytes()
        return tensor


class _PrefixWatch:
    """Adds up the operations within some modules, none of which contains another."""

    def __init__(self, prefixes: Sequence[Sequence[nn.Module]], counter: OperationCounter) -> None:
        self.work, self.hidden = Work(), 0
        self._counter = counter
        self._began = Work()
        self._ends = {id(prefix[-1]) for prefix in prefixes}
        modules = [module for prefix in prefixes for module in prefix]
        self._handles = [m.register_forward_pre_hook(self._enter) for m in modules]
        self._handles += [m.register_forward_hook(self._leave) for m in modules]

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _enter(self, *_: Any) -> None:
        self._began = self._counter.work

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self.work += self._counter.work - self._began
        if id(module) in self._ends:
            parts = [output] if isinstance(output, Tensor) else output
            self.hidden += next((part.nbytes for part in parts if isinstance(part, Tensor)), 0)


def measure_step(
    module: LightningModule,
    batch: Any,
    optimizers: Sequence[Optimizer],
    prefixes: Sequence[Sequence[nn.Module]] = (),
    context: Callable[[], AbstractContextManager[Any]] = ExitStack,
) -> MeasuredStep:
    """Run one training step on fake tensors: forward pass, backward pass and optimizers.

    Args:
        module: The module, with ``requires_grad`` as in the step. Its parameters may be on the meta device.
        batch: One batch. Values that the module reads to decide what it computes cannot be known. Metrics of
            torchmetrics may read values: where they do, they are left out.
        optimizers: The optimizers of the module.
        prefixes: For each tower the modules that a cache would skip, in the order in which they run.
        context: Makes the context of the forward pass, such as that of mixed precision.

    Raises:
        Exception: Any error of the module, for example because it reads the values of a tensor.
    """
    try:
        return _measure(module, batch, optimizers, prefixes, context)
    except Exception:
        if not has_metrics(module):
            raise
    with silent_metrics(module):
        return _measure(module, batch, optimizers, prefixes, context)


def _measure(
    module: LightningModule,
    batch: Any,
    optimizers: Sequence[Optimizer],
    prefixes: Sequence[Sequence[nn.Module]],
    context: Callable[[], AbstractContextManager[Any]],
) -> MeasuredStep:
    _start_autograd()
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        fakes = {tensor: _fake(tensor) for tensor in (*module.parameters(), *module.buffers())}
        inputs = apply_to_collection(batch, Tensor, _fake)
    # Not within the mode, which would not let settings that are tensors be copied.
    stepped = [fake_optimizer(optimizer, fakes, lambda tensor: _fake_in(mode, tensor)) for optimizer in optimizers]
    parameters = [fakes[parameter] for parameter in module.parameters()]
    counter, saved = OperationCounter(), _SavedTensors(parameters)
    watch = _PrefixWatch(prefixes, counter)
    with mode:
        try:
            with stand_ins(module, fakes):
                with counter, context(), torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor):
                    loss = _loss(module, inputs)
                forward, activations = counter.work, saved.bytes
                with counter:  # activation checkpointing runs parts of the module again
                    loss.backward()
                backward = counter.work - forward
        finally:
            watch.close()
        with AnyValue(), counter:  # type: ignore[no-untyped-call]
            for optimizer in stepped:
                optimizer.step()
        update = counter.work - forward - backward
    gradients = sum(fake.grad.nbytes for fake in parameters if fake.grad is not None)
    states = state_bytes(stepped, fakes)
    return MeasuredStep(
        forward - watch.work, watch.work, backward, update, gradients, states, activations, watch.hidden
    )


def _start_autograd() -> None:
    """Start autograd before there are fake tensors, so that forked processes can still train afterwards.

    Where PyTorch is built for CUDA and finds no GPU, ``FakeTensorMode`` sets a stand-in for one. If autograd starts
    after that, it starts a thread for this device, and refuses a backward pass in processes that are forked later
    (``ddp_fork``, ``ddp_notebook``).
    """
    with torch.inference_mode(False), torch.enable_grad():
        torch.zeros((), requires_grad=True).backward()


def _loss(module: LightningModule, batch: Any) -> Tensor:
    step = module.training_step
    output = step(batch, 0) if is_param_in_hook_signature(step, "batch_idx", min_args=2) else step(batch)
    loss = output["loss"] if isinstance(output, Mapping) else output
    if not isinstance(loss, Tensor):
        raise TypeError(f"training_step returned {type(loss).__name__}, not a loss")
    return loss


def _fake(tensor: Tensor) -> Tensor:
    device = torch.device("cpu") if tensor.device.type == "meta" else tensor.device
    fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
    return fake.requires_grad_(tensor.requires_grad) if isinstance(tensor, Parameter) else fake


def _fake_in(mode: FakeTensorMode, tensor: Tensor) -> Tensor:
    with mode:
        return _fake(tensor)
