"""Runs a module once more with the same random numbers, and undoes the side effects."""

from __future__ import annotations

import random
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from itertools import islice
from operator import is_
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_freeze.cache.identity.values import attributes_of
from lightning_freeze.cache.prefix.random_state import RandomState
from lightning_freeze.cache.prefix.stand_ins import replaced_forward
from lightning_freeze.namespaces import either


@contextmanager
def isolated(module: nn.Module, start: RandomState, device: torch.device) -> Iterator[None]:
    """Run a module in this context without side effects, from a given state of the random number generators.

    Args:
        module: The module that runs. Its buffers and attributes are restored, and what it logs is dropped.
        start: The state of the random number generators to start from.
        device: Where the module runs.
    """
    now = RandomState(device)
    attributes = [(owner, attributes_of(owner)) for owner in module.modules()]
    buffers = [(owner, name, b) for owner, _ in attributes for name, b in owner._buffers.items() if b is not None]
    saved = _Backup()
    try:
        # Buffers are replaced by copies, rather than restored by writing: the pass that has just ended may have saved
        # them for its backward pass, which fails after any write.
        for owner, name, buffer in buffers:
            owner._buffers[name] = buffer.detach().clone()
        for owner, own in attributes:
            vars(owner).update({name: saved.copy(value) for name, value in own.items()})
            if isinstance(owner, either(LightningModule)):
                vars(owner).update(log=_ignore, log_dict=_ignore)
        start.restore()
        with torch.no_grad():
            yield
    finally:
        now.restore()
        for owner, name, buffer in buffers:
            owner._buffers[name] = buffer
        for owner, own in attributes:
            for name in attributes_of(owner).keys() - own.keys():
                del vars(owner)[name]
            vars(owner).update(own)
        saved.restore_all()


#: Depth to which containers are read, the number of their parts, and the bytes that are copied in all.
_DEPTH, _MOST_PARTS, _MOST_BYTES = 4, 20_000, 2**28
#: Containers that can be refilled. Other classes may refuse it, or mirror their content elsewhere.
_CONTAINERS = frozenset({list, dict, set, deque, defaultdict, OrderedDict, Counter})
_PLAIN = (str, int, float, bytes)


class _Backup:
    """The content of values that can change in place: tensors, containers, arrays, random number generators.

    Tensors are copied up to a limit: states of metrics are small, but an attribute may also hold a data set.
    """

    def __init__(self) -> None:
        self._undo: list[Callable[[], Any]] = []
        self._parts = _MOST_PARTS
        self._bytes = _MOST_BYTES

    def restore_all(self) -> None:
        """Restore the content of all values."""
        for undo in self._undo:
            with suppress(Exception):  # restore the others in any case
                undo()

    def copy(self, value: Any, depth: int = _DEPTH) -> Any:
        """Save a value and its parts.

        Args:
            value: The value.
            depth: How many more levels of containers to read.

        Returns:
            The value, with its tensors replaced by copies. Containers stay the same objects.
        """
        self._parts -= 1
        if isinstance(value, Tensor):
            return _copy(value) if self._fits(value.numel() * value.element_size()) else value
        if type(value) is tuple:
            parts = tuple(self._copied(enumerate(value), depth).values())
            return value if all(map(is_, parts, value)) else (*parts, *value[len(parts) :])
        if type(value) in _CONTAINERS:
            content: Any = dict(value) if isinstance(value, dict) else list(value)
            self._undo.append(lambda: _refill(value, content))
            if not isinstance(value, set):
                items = content.items() if isinstance(value, dict) else enumerate(content)
                for key, part in self._copied(items, depth).items():
                    if part is not content[key]:
                        value[key] = part
        elif type(value) is np.ndarray and value.flags.writeable and self._fits(value.nbytes):
            array = value.copy()
            self._undo.append(lambda: _rewrite(value, array))
        elif isinstance(value, torch.Generator):
            self._undo.append(partial(value.set_state, value.get_state()))
        elif isinstance(value, random.Random):
            self._undo.append(partial(value.setstate, value.getstate()))
        elif isinstance(value, np.random.Generator):
            self._undo.append(partial(setattr, value.bit_generator, "state", value.bit_generator.state))
        elif isinstance(value, np.random.RandomState):
            self._undo.append(partial(value.set_state, value.get_state()))
        return value

    def _copied(self, items: Iterable[tuple[Any, Any]], depth: int) -> dict[Any, Any]:
        some = islice(items, max(0, self._parts)) if depth else ()
        return {key: part if isinstance(part, _PLAIN) else self.copy(part, depth - 1) for key, part in some}

    def _fits(self, size: int) -> bool:
        if size > self._bytes:
            return False
        self._bytes -= size
        return True


def _refill(value: Any, content: Any) -> None:
    is_same = len(value) == len(content) and all(map(is_, value, content))
    if is_same and (not isinstance(value, dict) or all(map(is_, value.values(), content.values()))):
        return
    value.clear()
    value.extend(content) if isinstance(value, (list, deque)) else value.update(content)


def _rewrite(value: np.ndarray, content: np.ndarray) -> None:
    if not np.array_equal(value, content):
        np.copyto(value, content)


def _copy(tensor: Tensor) -> Tensor:
    with torch.enable_grad():  # so that the copy requires grad if the tensor does
        return tensor.clone()


def _ignore(*args: Any, **kwargs: Any) -> None: ...


class RandomUse(ExitStack):
    """Observes whether modules draw random numbers while it is open.

    Args:
        modules: The modules to observe.
        device: Where they run.

    Attributes:
        any: Whether any of them has.
    """

    def __init__(self, modules: Sequence[nn.Module], device: torch.device) -> None:
        super().__init__()
        self.found = False
        for module in modules:
            self.enter_context(replaced_forward(module, self._observed(module.forward, device)))

    def _observed(self, run: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            before = RandomState(device)
            output = run(*args, **kwargs)
            self.found = self.found or before.has_advanced()
            return output

        return forward
