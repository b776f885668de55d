"""Comparing what the cache would do with what the module really does."""

from __future__ import annotations

import random
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields, is_dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_freeze.cache.layout import Spans
from lightning_freeze.cache.skip import replaced

#: Largest relative difference that another batch size, order or padding may make, by precision.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3}


#: What every module has.
_OWN = frozenset({*vars(nn.Module()), "forward"})


class Randomness:
    """The state of every random number generator that a forward pass may draw from.

    Args:
        device: Where the pass runs.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._torch = torch.get_rng_state()
        self._accelerator = _module(device).get_rng_state(device) if _module(device) else None
        self._python = random.getstate()
        self._numpy: Any = np.random.get_state()

    def drawn_since(self) -> bool:
        """Whether anything has been drawn since this state was taken."""
        now = Randomness(self._device)
        same = torch.equal(self._torch, now._torch) and self._python == now._python
        if same and self._accelerator is not None and now._accelerator is not None:
            same = torch.equal(self._accelerator, now._accelerator)
        return not (same and self._numpy[2] == now._numpy[2] and np.array_equal(self._numpy[1], now._numpy[1]))

    def restore(self) -> None:
        """Go back to this state."""
        torch.set_rng_state(self._torch)
        if self._accelerator is not None:
            _module(self._device).set_rng_state(self._accelerator, self._device)
        random.setstate(self._python)
        np.random.set_state(self._numpy)


def _module(device: torch.device) -> Any:
    return getattr(torch, device.type) if device.type in ("cuda", "xpu") else None


@contextmanager
def rehearsal(module: nn.Module, start: Randomness, device: torch.device) -> Iterator[None]:
    """Run a module once more as if from an earlier state of the random numbers, and leave no trace of it.

    Args:
        module: What will be run; its buffers and attributes are put back, and nothing that it logs is kept.
        start: The state to begin with.
        device: Where it runs.
    """
    now = Randomness(device)
    attributes = [(owner, _attributes(owner)) for owner in module.modules()]
    kept = [
        (owner, name, buffer)
        for owner in module.modules()
        for name, buffer in owner._buffers.items()
        if buffer is not None
    ]
    # Copies take their place, rather than their values being put back: the pass that has just ended keeps some of them
    # for its backward pass, and notices any writing.
    for owner, name, buffer in kept:
        owner._buffers[name] = buffer.detach().clone()
    for owner, before in attributes:
        vars(owner).update({name: _copy(value) for name, (value, _) in before.items() if isinstance(value, Tensor)})
        if isinstance(owner, LightningModule):
            vars(owner).update(log=_nothing, log_dict=_nothing)
    start.restore()
    try:
        with torch.no_grad():
            yield
    finally:
        now.restore()
        for owner, name, buffer in kept:
            owner._buffers[name] = buffer
        for owner, before in attributes:
            _put_back(owner, before)


def _attributes(module: nn.Module) -> dict[str, tuple[Any, Any]]:
    """A module's attributes, those that can change in place with a copy of their content."""
    return {
        name: (value, value.copy() if type(value) in _CONTAINERS else None)
        for name, value in vars(module).items()
        if name not in _OWN
    }


_CONTAINERS = (list, dict, set, deque, defaultdict, OrderedDict)
#: Largest tensor in a plain attribute, such as the state of a metric, that is saved from being written to.
_LARGEST = 2**24


def _copy(tensor: Tensor) -> Tensor:
    if tensor.numel() * tensor.element_size() > _LARGEST:
        return tensor
    with torch.enable_grad():  # so that something that trains is still seen to
        return tensor.clone()


def _nothing(*args: Any, **kwargs: Any) -> None: ...


def _put_back(module: nn.Module, before: Mapping[str, tuple[Any, Any]]) -> None:
    own = vars(module)
    for name in [name for name in own if name not in _OWN and name not in before]:
        del own[name]
    for name, (value, content) in before.items():
        own[name] = value
        if content is not None:
            value.clear()
            value.extend(content) if isinstance(value, (list, deque)) else value.update(content)


@contextmanager
def undrawn(device: torch.device) -> Iterator[None]:
    """Put the random numbers back to where they were."""
    before = Randomness(device)
    try:
        yield
    finally:
        before.restore()


class Draws(ExitStack):
    """Open while it is watched which modules draw random numbers.

    Args:
        modules: The modules to watch.
        device: Where they run.

    Attributes:
        any: Whether any of them has.
    """

    def __init__(self, modules: Sequence[nn.Module], device: torch.device) -> None:
        super().__init__()
        self.any = False
        for module in modules:
            self.enter_context(replaced(module, self._watched(module.forward, device)))

    def _watched(self, run: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            before = Randomness(device)
            output = run(*args, **kwargs)
            self.any = self.any or before.drawn_since()
            return output

        return forward


def has_nan(value: Any) -> bool:
    """Whether there is NaN in any tensor of an output."""
    tensors = (t.detach() for t in tensors_in(value) if t.is_floating_point())
    # The sum first: it passes over the tensor once, and needs no memory.
    return any(bool(torch.isnan(t.sum())) and bool(torch.isnan(t).any()) for t in tensors)


def keeps_nan(module: nn.Module) -> bool:
    """Whether a module, or one in it, has an attribute that is, or holds, a tensor with NaN."""
    attributes = (v for m in module.modules() for name, v in vars(m).items() if name not in _OWN)
    return any(has_nan(value) for value in attributes)


class Kept:
    """The tensors that some modules have in plain attributes, to see later which of them are others.

    Args:
        modules: The modules.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._modules = list(modules)
        self._found = self._look()

    def _look(self) -> dict[tuple[int, str, int], tuple[Tensor, int]]:
        return {
            (number, name, place): (tensor, version_of(tensor))
            for number, module in enumerate(self._modules)
            for name, value in vars(module).items()
            if name not in _OWN and not callable(value)
            for place, tensor in enumerate(tensors_in(value))
        }

    def differ(self, by_content: bool) -> bool:
        """Whether there are others now.

        Args:
            by_content: Whether a new tensor with the same content counts as the same.
        """
        now = self._look()
        if now.keys() != self._found.keys():
            return True
        for key, (tensor, version) in now.items():
            before, then = self._found[key]
            if tensor is before and version == then:
                continue
            if not by_content or tensor is before or difference(tensor, before) > 0:
                return True
        return False


def version_of(tensor: Tensor) -> int:
    """How often a tensor has been written to; 0 where that is not counted."""
    return 0 if tensor.is_inference() else tensor._version


def difference(found: Tensor, expected: Tensor) -> float:
    """Relative difference of two tensors, as the norm of their difference over the norm of the second."""
    if found.shape != expected.shape:
        return float("inf")
    wide = torch.float64 if expected.dtype == torch.float64 else torch.float32
    found, expected = found.detach().to(expected.device, wide), expected.detach().to(wide)
    agree = torch.equal(found, expected)
    # NaN and infinity in the same places are the model's own affair.
    finite = torch.isfinite(expected)
    if agree or not bool((torch.isfinite(found) == finite).all()):
        return 0.0 if agree else float("inf")
    gap = torch.linalg.vector_norm((found - expected)[finite])
    return float(gap / torch.linalg.vector_norm(expected[finite]).clamp_min(1e-12))


def tolerance(*dtypes: torch.dtype) -> float:
    """The largest difference to be expected between results in the coarsest of some precisions."""
    return max(TOLERANCE.get(dtype, TOLERANCE[torch.float32]) for dtype in dtypes)


def without_padding(tensor: Tensor, spans: Spans | None, length: int) -> Tensor:
    """A tensor without the positions of padding, where it has any.

    Args:
        tensor: Anything that a module returned.
        spans: For each sample the first position that is no padding and the one behind the last.
        length: Number of positions in the batch.
    """
    if spans is None or tensor.dim() < 2 or tensor.shape[:2] != (len(spans), length):
        return tensor
    return torch.cat([tensor[row, start:stop] for row, (start, stop) in enumerate(spans)])


def outputs_differ(found: Any, expected: Any, spans: Spans | None, length: int, limit: float) -> bool:
    """Whether two outputs of a module differ in any tensor, the positions of padding aside."""
    ours, theirs = list(tensors_in(found)), list(tensors_in(expected))
    if [t.shape for t in ours] != [t.shape for t in theirs]:
        return True
    return any(
        difference(without_padding(a, spans, length), without_padding(b, spans, length)) > limit
        for a, b in zip(ours, theirs, strict=True)
        if b.is_floating_point()
    )


def tensors_in(value: Any) -> Iterable[Tensor]:
    """Every tensor in an output, key-value caches left out."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            if key != "past_key_values":
                yield from tensors_in(part)
    elif isinstance(value, (Sequence, deque)) and not isinstance(value, (str, bytes)):
        for part in value:
            yield from tensors_in(part)
    elif (record := record_of(value)) is not None:
        yield from tensors_in(record)


def record_of(value: Any) -> dict[str, Any] | None:
    """The parts of a dataclass or of a namespace by name; ``None`` if a value is neither."""
    if is_dataclass(value) and not isinstance(value, type):
        own = {field.name: getattr(value, field.name, None) for field in fields(value)}  # with slots there is no dict
        return {**own, **getattr(value, "__dict__", {})}
    return vars(value) if isinstance(value, SimpleNamespace) else None
