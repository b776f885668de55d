"""Running a module once more, with the random numbers that it had, and leaving no trace of it."""

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
from lightning_freeze.cache.prefix.random_state import Randomness
from lightning_freeze.cache.prefix.stand_ins import replaced


@contextmanager
def rehearsal(module: nn.Module, start: Randomness, device: torch.device) -> Iterator[None]:
    """Run a module once more as if from an earlier state of the random numbers, and leave no trace of it.

    Args:
        module: What will be run; its buffers and attributes are put back, and nothing that it logs is kept.
        start: The state to begin with.
        device: Where it runs.
    """
    now = Randomness(device)
    attributes = [(owner, attributes_of(owner)) for owner in module.modules()]
    buffers = [(owner, name, b) for owner, _ in attributes for name, b in owner._buffers.items() if b is not None]
    saved = _Saved()
    try:
        # Copies take their place, rather than their values being put back: the pass that has just ended keeps some of
        # them for its backward pass, and notices any writing.
        for owner, name, buffer in buffers:
            owner._buffers[name] = buffer.detach().clone()
        for owner, own in attributes:
            vars(owner).update({name: saved.copy(value) for name, value in own.items()})
            if isinstance(owner, LightningModule):
                vars(owner).update(log=_nothing, log_dict=_nothing)
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
        saved.put_back()


#: How deep containers are looked into, how many of their parts, and the bytes that are copied in all.
_DEPTH, _MOST_PARTS, _MOST_BYTES = 4, 20_000, 2**28
#: What can be written to in the usual way: other kinds may refuse it, or mirror what they hold elsewhere.
_CONTAINERS = frozenset({list, dict, set, deque, defaultdict, OrderedDict, Counter})
_PLAIN = (str, int, float, bytes)


class _Saved:
    """What was in values that can change in place: tensors, containers, arrays, generators of random numbers.

    Tensors are copied as long as they are not too many: states of metrics are small, a data set may be kept too.
    """

    def __init__(self) -> None:
        self._undo: list[Callable[[], Any]] = []
        self._parts = _MOST_PARTS
        self._bytes = _MOST_BYTES

    def put_back(self) -> None:
        """Give everything the content back that it had."""
        for undo in self._undo:
            with suppress(Exception):  # the others are to have theirs in any case
                undo()

    def copy(self, value: Any, depth: int = _DEPTH) -> Any:
        """Save a value and what is in it.

        Args:
            value: The value.
            depth: How much deeper to look.

        Returns:
            The same, with copies in the place of its tensors. Containers stay the ones that they are.
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
    with torch.enable_grad():  # so that something that trains is still seen to
        return tensor.clone()


def _nothing(*args: Any, **kwargs: Any) -> None: ...


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
