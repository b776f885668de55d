"""What forbids to skip the frozen layers in a call: requests, hooks of others, modes, generation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_freeze.cache.identity.cached_towers import CachedTower
from lightning_freeze.cache.identity.keys import Unsupported

_PAST = ("past_key_values", "past_key_value", "layer_past", "cache_params")
_REQUESTS = ("output_hidden_states", "output_attentions")
# They ask for hooks before they take their fast path.
_HOOKS_MATTER = (nn.MultiheadAttention, nn.TransformerEncoder, nn.TransformerEncoderLayer)


class Obstacles:
    """Looks at each call of a tower.

    Args:
        tower: The tower.

    Attributes:
        modules: The modules that would be skipped.
        is_watched: Whether this package itself watches the running pass with hooks on layers that compute by other
            kernels as long as a hook is there: what they compute now is not what they will compute later.
    """

    def __init__(self, tower: CachedTower) -> None:
        self.modules: list[nn.Module] = []
        self.is_watched = False
        self._tower = tower
        self._boundary = -1
        self._others: list[nn.Module] = []
        self._around = [module for module in tower.around() if module is not tower.entry]

    @property
    def loud(self) -> frozenset[int]:
        """Which modules outside of the blocks, by number, are in training mode, in which they may draw at random."""
        return frozenset(number for number, module in enumerate(self._others) if module.training)

    def look(self, boundary: int, named: dict[str, Any]) -> str:
        """Look for what forbids to skip.

        Args:
            boundary: Number of blocks to skip.
            named: All arguments of the call, by name.

        Returns:
            The modes of the modules, as text; ``"eval"`` if none is in training mode.

        Raises:
            Unsupported: If there is anything.
        """
        config = getattr(self._tower.entry, "config", None)
        for request in _REQUESTS:
            given = named.get(request)
            if given or (given is None and getattr(config, request, False)):
                raise Unsupported(f"{request}=True asks for what its skipped layers compute on the way")
        if torch.compiler.is_compiling():
            raise Unsupported("it is compiled")
        if self._boundary != boundary:
            self._boundary, self.modules = boundary, self._tower.prefix_modules(boundary)
            inside = {id(m) for m in self.modules} | {id(m) for b in self._tower.blocks for m in b.modules()}
            self._others = [m for m in self._tower.entry.modules() if id(m) not in inside]
        trains = []
        everywhere = hooked_everywhere()
        watched = False
        self._look_around()
        for number, module in enumerate(self.modules):
            if module._forward_hooks or module._forward_pre_hooks:
                watched = self._has_hooks_of_ours(module) or watched
            if module.training:
                trains.append(number)
                if isinstance(module, _BatchNorm):
                    raise Unsupported("a BatchNorm in its frozen layers is in training mode and averages over batches")
        self.is_watched = everywhere or (watched and any(isinstance(m, _HOOKS_MATTER) for m in self.modules))
        return f"training {trains}" if trains else "eval"

    def _has_hooks_of_ours(self, module: nn.Module) -> bool:
        ours = False
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values()):
            ours = _is_ours(hook) or ours
            if not _is_harmless(hook):
                raise Unsupported(
                    f"something has placed a forward hook on {self._name(module)}, which would be skipped"
                )
        return ours

    def _look_around(self) -> None:
        """Look for hooks that change what comes to the blocks after the keys were made of it."""
        hooks = [*self._tower.entry._forward_pre_hooks.values()]
        mine = next((number for number, hook in enumerate(hooks) if isinstance(hook, Hook)), len(hooks))
        late = [(self._tower.entry, hook) for hook in hooks[mine:]]
        for module, hook in (*late, *((m, h) for m in self._around for h in m._forward_pre_hooks.values())):
            if not _is_harmless(hook):
                raise Unsupported(f"something has placed a forward hook on {self._name(module)}, before its layers")

    def _name(self, module: nn.Module) -> str:
        names = (name for name, m in self._tower.entry.named_modules() if m is module)
        return next(names, "") or type(module).__name__


def _is_ours(hook: Any) -> bool:
    return str(getattr(hook, "__module__", "")).startswith("lightning_freeze.")


def _is_harmless(hook: Any) -> bool:
    # Those of transformers do nothing until hidden states or attentions are asked for, which is noticed elsewhere.
    return _is_ours(hook) or str(getattr(hook, "__module__", "")).startswith("transformers.utils.output_capturing")


def hooked_everywhere() -> bool:
    """Whether hooks are placed on all modules that there are, as profilers do: they would see what is skipped."""
    # There is no public way to ask.
    found = (getattr(torch.nn.modules.module, f"_global_forward_{kind}", {}) for kind in ("hooks", "pre_hooks"))
    return any(map(bool, found))


def can_prove() -> bool:
    """Whether the hidden states of this pass may be made to require grad, to see what is read of them.

    Not inside of activation checkpointing, which counts what a pass keeps for its backward pass.
    """
    # There is no public way to ask; without it nothing is proved, and padding is stored with the rest.
    ask = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return torch.is_grad_enabled() and ask is not None and ask(False) is None


def recomputes() -> bool:
    """Whether a backward pass is running, as while activation checkpointing repeats a forward pass."""
    # What torch.utils.checkpoint itself asks; there is no public way.
    return torch._C._current_graph_task_id() != -1


class Generation:
    """Calls that go on from stored keys and values are left alone; what a skipping pass has stored lacks some.

    Args:
        entry: The tower's entry.
        names: Names of its positional parameters.
    """

    def __init__(self, entry: nn.Module, names: Sequence[str]) -> None:
        self._entry = entry
        self._names = names
        self._unfinished: WeakKeyDictionary[Any, tuple[tuple[Any, ...], dict[str, Any]]] = WeakKeyDictionary()

    def goes_on(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether a call goes on from an earlier one; completes what that one has stored, if it skipped blocks."""
        named = {**dict(zip(self._names, args, strict=False)), **kwargs}
        past = next((named[name] for name in _PAST if named.get(name) is not None), None)
        if past is None:
            return False
        try:
            unfinished = self._unfinished.pop(past, None)
        except TypeError:  # a plain tuple, which no pass that skipped blocks has returned
            return True
        if unfinished is not None:
            again = self._entry.forward(*unfinished[0], **unfinished[1])
            vars(past).update(vars(again.past_key_values))
        return True

    def note(self, output: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Remember that the keys and values in an output lack those of the skipped blocks."""
        past = getattr(output, "past_key_values", None)
        if past is not None:
            self._unfinished[past] = (args, kwargs)


class Hook:
    """A forward hook that stays behind when the module is copied or pickled: it belongs to one run of one module."""

    def __init__(self, call: Callable[..., Any] | None = None) -> None:
        self._call = call

    def __call__(self, *args: Any) -> Any:  # noqa: D102
        return self._call(*args) if self._call is not None else None

    def __reduce__(self) -> tuple[type[Hook], tuple[()]]:
        return Hook, ()
