"""What training keeps in memory, by what it is for: predicted from what trains, and measured."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from benchmarks.speedtest.contenders import RATE, Finetuned, loaders, prepared
from benchmarks.speedtest.subjects import Batch, Subject
from lightning_freeze import FrozenPrefixCache, LayerFreezing, LayerStack
from lightning_freeze.cache.offload import return_free_memory

#: AdamW keeps two moments of each parameter.
MOMENTS = 2


class Kept(NamedTuple):
    """Bytes of one training step."""

    weights: int
    gradients: int
    optimizer: int
    activations: int


class OfProcess(NamedTuple):
    """Bytes of a process in the last step of a run.

    Attributes:
        within: The most at the ends of the forward pass, the backward pass and the step. The allocator keeps some of
            what was freed earlier, in the first steps too.
        after: What is held after the step, once the allocator has returned what is free.
    """

    within: int
    after: int

    def above(self, start: int) -> OfProcess:
        """What exceeds the bytes at the start."""
        return OfProcess(max(0, self.within - start), max(0, self.after - start))


#: The hand-cut model in a plain loop, which keeps nothing of what is frozen.
IDEAL = "ideal, cut by hand"
OFFLOAD = "LayerFreezing + cache, offload"
#: Name of each contender that Lightning trains to its callbacks.
TRAINED: dict[str, Callable[[str], list[Callback]]] = {
    "full fine-tuning": lambda freeze: [],
    "LayerFreezing": lambda freeze: [LayerFreezing(freeze, verbose=False)],
    "LayerFreezing + cache": lambda freeze: [LayerFreezing(freeze, verbose=False), FrozenPrefixCache(verbose=False)],
    OFFLOAD: lambda freeze: [
        LayerFreezing(freeze, verbose=False),
        FrozenPrefixCache(verbose=False, offload=True),
    ],
}
CONTENDERS = (*TRAINED, IDEAL)


def predicted(subject: Subject, contender: str) -> Kept:
    """Predict from the sizes of what trains and from what each layer keeps in full fine-tuning."""
    module = Finetuned(subject.build())
    stack = LayerStack(module)
    frozen = set() if contender == "full fine-tuning" else {layer.name for layer in stack.select(subject.freeze).layers}
    trains = _bytes(p for layer in stack if layer.name not in frozen for p in layer.parameters())
    above = sum(kept for layer, kept in saved_by_layer(module, subject).items() if layer not in frozen)
    weights = trains if contender == IDEAL else _bytes(module.parameters())
    return Kept(weights, trains, MOMENTS * trains, above)


def measured(subject: Subject, contender: str, folder: Path) -> tuple[Kept, OfProcess]:
    """Measure in the last step of a run."""
    return ideal(subject) if contender == IDEAL else fitted(subject, contender, folder)


def ideal(subject: Subject) -> tuple[Kept, OfProcess]:
    """Measure in the last step of a plain loop over the hand-cut model, with its inputs in RAM."""
    cut = subject.cut(subject.build())
    *batches, _ = prepared(cut, subject)
    model = cut.model.train()
    del cut  # it has the rest of the model
    gc.collect()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE)
    highest = Highest()
    for batch in batches * subject.epochs:
        highest.reset()
        optimizer.zero_grad()
        with Saved(model.parameters()) as saved:
            loss = model(**batch).loss
            activations = saved.bytes
        highest.look()
        loss.backward()
        highest.look()
        optimizer.step()
        highest.look()
        del loss
    kept = Kept(_bytes(model.parameters()), _of_gradients(model), _of_optimizers([optimizer]), activations)
    return kept, OfProcess(highest.bytes, held_memory())


def fitted(subject: Subject, contender: str, folder: Path) -> tuple[Kept, OfProcess]:
    """Measure in the last step of a run of ``Trainer.fit``."""
    module, meter = Finetuned(subject.build()), Meter(subject.batches * subject.epochs)
    train, _ = loaders(subject)
    Trainer(
        accelerator="cpu",
        max_epochs=subject.epochs,
        default_root_dir=folder,
        callbacks=[*TRAINED[contender](subject.freeze), meter],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module, train)
    return meter.kept(module), OfProcess(meter.highest.bytes, meter.after)


class Meter(Callback):
    """Measures what the last step of a run keeps.

    Args:
        steps: Number of steps of the run.
    """

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._gradients = self._optimizer = 0
        self._saved = Saved(())
        self.highest = Highest()
        self.after = 0

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Batch, batch_idx: int) -> None:
        self.highest.reset()
        self._saved = Saved(module.parameters())
        self._saved.__enter__()

    def on_before_zero_grad(self, trainer: Trainer, module: LightningModule, optimizer: object) -> None:
        self.highest.look()  # Lightning keeps the gradients of the step before until the forward pass is done

    def on_before_backward(self, trainer: Trainer, module: LightningModule, loss: Tensor) -> None:
        self._saved.__exit__()
        self.highest.look()

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: object) -> None:
        self._gradients = _of_gradients(module)
        self.highest.look()

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        self.highest.look()
        if trainer.global_step == self._steps:
            self.after = held_memory()

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._optimizer = _of_optimizers(trainer.optimizers)

    def kept(self, module: LightningModule) -> Kept:
        """The measured bytes."""
        return Kept(_bytes(module.parameters()), self._gradients, self._optimizer, self._saved.bytes)


def anonymous_memory() -> int:
    """Bytes of this process that the system cannot drop and read again; Linux only."""
    status = Path("/proc/self/status").read_text()
    return 1024 * sum(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon"))


def held_memory() -> int:
    """Anonymous memory once glibc has returned what is free."""
    return_free_memory()
    return anonymous_memory()


class Highest:
    """The most memory seen in a step."""

    def __init__(self) -> None:
        self.bytes = 0

    def reset(self) -> None:
        """Begin a step."""
        self.bytes = 0

    def look(self) -> None:
        """Read the memory now."""
        self.bytes = max(self.bytes, anonymous_memory())


class Saved:
    """Counts what autograd keeps for the backward pass while it is open, each storage once, weights left out."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self._weights = {p.untyped_storage().data_ptr() for p in parameters}
        self._seen: dict[int, tuple[int, Tensor]] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)
        self.bytes = 0

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._weights and storage.data_ptr() not in self._seen:
            # Held until the end, so that no other tensor is given the same address.
            self._seen[storage.data_ptr()] = storage.nbytes(), tensor
            self.bytes += storage.nbytes()
        return tensor

    def __enter__(self) -> Saved:
        self._hooks.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.__exit__()
        self._seen.clear()


def saved_by_layer(module: nn.Module, subject: Subject) -> dict[str, int]:
    """Bytes that autograd keeps for the backward pass of full fine-tuning, by the layer whose forward pass keeps them.

    What no layer's module keeps itself, the loss for instance, goes to the layer that ran before.
    """
    stack = LayerStack(module)
    modules = dict(module.named_modules())
    first = next(iter(stack)).name
    found: dict[str, int] = {layer.name: 0 for layer in stack}
    state = {"layer": first, "bytes": 0}

    def enter(name: str, saved: Saved) -> None:
        found[str(state["layer"])] += saved.bytes - int(state["bytes"])
        state["layer"], state["bytes"] = name, saved.bytes

    handles = []
    with Saved(module.parameters()) as saved:
        for layer in stack:
            for prefix in layer.prefixes:
                if prefix in modules:
                    hook = lambda *_, name=layer.name: enter(name, saved)  # noqa: E731
                    handles.append(modules[prefix].register_forward_pre_hook(hook))
        loss = module.train().model(**subject.batch()).loss
        enter(first, saved)
    for handle in handles:
        handle.remove()
    del loss
    return found


def _of_gradients(module: nn.Module) -> int:
    return _bytes(p.grad for p in module.parameters() if p.grad is not None)


def _of_optimizers(optimizers: Iterable[torch.optim.Optimizer]) -> int:
    states = [state for optimizer in optimizers for state in optimizer.state.values()]
    return _bytes(v for state in states for v in state.values() if isinstance(v, Tensor))


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
