"""Running a module once more, with the random numbers that it had, and leaving no trace of it."""

from __future__ import annotations

import random
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_freeze.cache.skip import replaced

#: What every module has.
OWN = frozenset({*vars(nn.Module()), "forward"})


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
    try:
        # Copies take their place, rather than their values being put back: the pass that has just ended keeps some of
        # them for its backward pass, and notices any writing.
        for owner, name, buffer in kept:
            owner._buffers[name] = buffer.detach().clone()
        for owner, before in attributes:
            _copy_tensors(owner, before)
        start.restore()
        with torch.no_grad():
            yield
    finally:
        now.restore()
        for owner, name, buffer in kept:
            owner._buffers[name] = buffer
        for owner, before in attributes:
            _put_back(owner, before)


def _attributes(module: nn.Module) -> dict[str, tuple[Any, Any]]:
    """A module's attributes, those that can change in place with their content."""
    return {name: (value, _content(value)) for name, value in vars(module).items() if name not in OWN}


def _content(value: Any) -> Any:
    if type(value) in _CONTAINERS:
        return value.copy()
    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, np.random.Generator):
        return value.bit_generator.state
    return value.get_state() if isinstance(value, np.random.RandomState) else None


_CONTAINERS = (list, dict, set, deque, defaultdict, OrderedDict)
#: Largest tensor in a plain attribute, such as the state of a metric, that is saved from being written to.
_LARGEST = 2**24


def _copy_tensors(module: nn.Module, attributes: Mapping[str, tuple[Any, Any]]) -> None:
    """Let copies take the place of the tensors in attributes, and let nothing be logged."""
    own = vars(module)
    for name, (value, content) in attributes.items():
        if isinstance(value, Tensor):
            own[name] = _copy(value)
        elif type(value) in _CONTAINERS and not isinstance(value, set):
            for key, part in content.items() if isinstance(content, dict) else enumerate(content):
                if isinstance(part, Tensor):
                    value[key] = _copy(part)
    if isinstance(module, LightningModule):
        own.update(log=_nothing, log_dict=_nothing)


def _copy(tensor: Tensor) -> Tensor:
    if tensor.numel() * tensor.element_size() > _LARGEST:
        return tensor
    with torch.enable_grad():  # so that something that trains is still seen to
        return tensor.clone()


def _nothing(*args: Any, **kwargs: Any) -> None: ...


def _put_back(module: nn.Module, before: Mapping[str, tuple[Any, Any]]) -> None:
    own = vars(module)
    for name in [name for name in own if name not in OWN and name not in before]:
        del own[name]
    for name, (value, content) in before.items():
        own[name] = value
        if type(value) in _CONTAINERS:
            value.clear()
            value.extend(content) if isinstance(value, (list, deque)) else value.update(content)
        elif isinstance(value, torch.Generator):
            value.set_state(content)
        elif isinstance(value, random.Random):
            value.setstate(content)
        elif isinstance(value, np.random.Generator):
            value.bit_generator.state = content
        elif isinstance(value, np.random.RandomState):
            value.set_state(content)


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
