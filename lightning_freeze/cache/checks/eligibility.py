"""Whether the frozen layers may be skipped in a call: requested outputs, hooks, modes, generation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import compress
from operator import attrgetter
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_freeze.cache.identity.cached_towers import CachedTower
from lightning_freeze.cache.identity.unsupported import Unsupported
from lightning_freeze.namespaces import either

#: Arguments that hold keys and values of earlier tokens.
_PAST = ("past_key_values", "past_key_value", "layer_past", "cache_params")
#: Arguments that ask for what skipped layers compute.
_REQUESTS = ("output_hidden_states", "output_attentions")
#: Where hooks are defined that do not keep layers from being skipped.
_HARMLESS = ("transformers.utils.output_capturing", "torch.distributed.fsdp.", "torch.distributed.tensor.")
#: Modules that leave their fast path when there are hooks.
_HOOKS_MATTER = (nn.MultiheadAttention, nn.TransformerEncoder, nn.TransformerEncoderLayer)
_HOOKS, _TRAINING = (attrgetter("_forward_hooks"), attrgetter("_forward_pre_hooks")), attrgetter("training")


class Eligibility:
    """Checks each call of a tower.

    Args:
        tower: The tower.

    Attributes:
        modules: The modules that would be skipped.
        mode: The modes of these modules, as text; ``"eval"`` if none is in training mode.
        has_observers: Whether hooks on all modules, or hooks of this package on layers that then use other kernels,
            observe the call. What such layers compute now is not what they compute later.
    """

    def __init__(self, tower: CachedTower) -> None:
        self.modules: list[nn.Module] = []
        self.has_observers = False
        self.mode = "eval"
        self._tower = tower
        self._boundary = -1
        self._others: list[nn.Module] = []
        self._enclosing = [module for module in tower.enclosing_modules() if module is not tower.entry]

    @property
    def training_modules(self) -> frozenset[int]:
        """The modules outside of the prefix that are in training mode, by number; they may draw random numbers."""
        return frozenset(compress(range(len(self._others)), map(_TRAINING, self._others)))

    def check(self, boundary: int, named: dict[str, Any]) -> None:
        """Check that skipping is allowed, and read the modes of the modules.

        Args:
            boundary: Number of blocks to skip.
            named: All arguments of the call, by name.

        Raises:
            Unsupported: If the prefix must not be skipped.
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
        self._check_hooks_before_blocks()
        # Without Python code for each module: this runs in each forward pass.
        hooked = [module for hooks in _HOOKS for module in compress(self.modules, map(hooks, self.modules))]
        is_ours = list(map(self._has_own_hooks, hooked))
        in_training = list(compress(range(len(self.modules)), map(_TRAINING, self.modules)))
        if any(isinstance(self.modules[number], _BatchNorm) for number in in_training):
            raise Unsupported("a BatchNorm in its frozen layers is in training mode and averages over batches")
        leaves_fast_path = any(is_ours) and any(isinstance(m, _HOOKS_MATTER) for m in self.modules)
        self.has_observers = has_global_hooks() or leaves_fast_path
        self.mode = f"training {in_training}" if in_training else "eval"

    def _has_own_hooks(self, module: nn.Module) -> bool:
        """Whether this package has placed a hook on a module; raises for hooks of others."""
        ours = False
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values()):
            ours = _is_ours(hook) or ours
            if not _is_harmless(hook):
                raise Unsupported(
                    f"something has placed a forward hook on {self._name(module)}, which would be skipped"
                )
        return ours

    def _check_hooks_before_blocks(self) -> None:
        """Check that no hook changes the inputs of the blocks after the keys were computed."""
        hooks = [*self._tower.entry._forward_pre_hooks.values()]
        mine = next((number for number, hook in enumerate(hooks) if isinstance(hook, Hook)), len(hooks))
        late = [(self._tower.entry, hook) for hook in hooks[mine:]]
        for module, hook in (*late, *((m, h) for m in self._enclosing for h in m._forward_pre_hooks.values())):
            if not _is_harmless(hook):
                raise Unsupported(f"something has placed a forward hook on {self._name(module)}, before its layers")

    def _name(self, module: nn.Module) -> str:
        names = (name for name, m in self._tower.entry.named_modules() if m is module)
        return next(names, "") or type(module).__name__


def _is_ours(hook: Any) -> bool:
    return str(getattr(hook, "__module__", "")).startswith("lightning_freeze.")


def _is_harmless(hook: Any) -> bool:
    # The hooks of transformers do nothing unless hidden states or attentions are requested, which is checked first.
    # Those of PyTorch's sharding gather weights and redistribute inputs, in the same way for the same inputs.
    return _is_ours(hook) or str(getattr(hook, "__module__", "")).startswith(_HARMLESS)


def has_global_hooks() -> bool:
    """Whether hooks are placed on all modules at once, as profilers do: they would observe the skipping."""
    # PyTorch has no public function for this.
    found = (getattr(torch.nn.modules.module, f"_global_forward_{kind}", {}) for kind in ("hooks", "pre_hooks"))
    return any(map(bool, found))


def can_check_padding() -> bool:
    """Whether hidden states may be made to require grad in this pass, so that a gradient shows what is read of them.

    Not inside of activation checkpointing, which compares the tensors that a pass saves with those of its repetition.
    """
    # PyTorch has no public function for this. Without it padding is never checked, and always stored.
    ask = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return torch.is_grad_enabled() and ask is not None and ask(False) is None


def is_recomputing() -> bool:
    """Whether a backward pass is running, as while activation checkpointing repeats a forward pass."""
    # torch.utils.checkpoint uses this too; PyTorch has no public function for it.
    return torch._C._current_graph_task_id() != -1


class Generation:
    """Recognises calls that continue from keys and values, and completes those that a skipping pass has returned.

    Args:
        entry: The tower's entry.
        names: Names of the positional parameters of its ``forward``.
    """

    def __init__(self, entry: nn.Module, names: Sequence[str]) -> None:
        self._entry = entry
        self._names = names
        self._unfinished: WeakKeyDictionary[Any, tuple[tuple[Any, ...], dict[str, Any]]] = WeakKeyDictionary()

    def continues(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether a call continues from an earlier one.

        Args:
            args: Positional arguments of the call.
            kwargs: Named arguments of the call.
        """
        return self._past(args, kwargs) is not None

    def complete(self, args: tuple[Any, ...], kwargs: dict[str, Any], need_weights: Callable[[], None]) -> None:
        """Complete the keys and values that a call continues from, if the pass that returned them skipped blocks.

        An error in it is raised. The call would compute something else without them.

        Args:
            args: Positional arguments of the call.
            kwargs: Named arguments of the call.
            need_weights: Called before blocks run that were skipped.
        """
        if torch.compiler.is_compiling() or not self._unfinished:
            return
        past = self._past(args, kwargs)
        try:
            unfinished = self._unfinished.get(past)
        except TypeError:  # a plain tuple, or none: no pass that skipped blocks has returned it
            return
        if unfinished is not None:
            need_weights()
            again = self._entry.forward(*unfinished[0], **unfinished[1])
            vars(past).update(vars(again.past_key_values))
            del self._unfinished[past]

    def _past(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the keys and values among the arguments of a call, ``None`` if there are none."""
        named = {**dict(zip(self._names, args, strict=False)), **kwargs}
        return next((named[name] for name in _PAST if named.get(name) is not None), None)

    def remember(self, output: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Remember that the keys and values in an output lack those of the skipped blocks.

        Args:
            output: What the entry returned.
            args: Positional arguments of the call.
            kwargs: Named arguments of the call.
        """
        past = getattr(output, "past_key_values", None)
        if past is not None:
            self._unfinished[past] = (args, kwargs)


class Hook:
    """A forward hook that does nothing in a copy of the module: it belongs to one run of one module."""

    def __init__(self, call: Callable[..., Any] | None = None) -> None:
        self._call = call

    def __call__(self, *args: Any) -> Any:  # noqa: D102
        return self._call(*args) if self._call is not None else None

    def __reduce__(self) -> tuple[type[Hook], tuple[()]]:
        return Hook, ()


def shards_weights(strategy: Any) -> bool:
    """Whether a strategy shards the weights in a way in which layers cannot be skipped on all ranks at once."""
    from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy

    return isinstance(strategy, either(DeepSpeedStrategy, FSDPStrategy))


def is_compiled_tower(module: nn.Module, tower: nn.Module) -> bool:
    """Whether ``torch.compile`` has been applied to a tower, to a module in it or to one around it."""
    if getattr(module, "_compiler_ctx", None):  # Lightning's own note that the LightningModule was compiled
        return True
    for candidate in module.modules():
        # Checked by name: importing torch._dynamo takes seconds in a run that compiles nothing.
        compiled = candidate._compiled_call_impl is not None or type(candidate).__name__ == "OptimizedModule"
        if compiled and (any(m is tower for m in candidate.modules()) or any(m is candidate for m in tower.modules())):
            return True
    return False
