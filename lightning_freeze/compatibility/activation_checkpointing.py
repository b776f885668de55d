"""Activation (gradient) checkpointing over a frozen prefix.

Reentrant checkpointing computes gradients only if an input of the checkpointed part requires grad. Above frozen layers
no input does, so trainable parameters get no gradient, without an error. Libraries work around this by making the
output of the embeddings require grad. Then backward runs through every frozen layer, and freezing saves no time. The
non-reentrant form does not need this, and gives the same gradients.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim import Optimizer
from torch.utils import checkpoint
from torch.utils.hooks import RemovableHandle

from lightning_freeze.errors import ConfigurationError

Undo = Callable[[], None]


def make_non_reentrant(root: nn.Module) -> list[Undo]:
    """Switch the checkpointing of transformers' models in ``root`` to its non-reentrant form.

    Args:
        root: The module that is being fitted.

    Returns:
        Functions that undo it; empty if there was nothing to do. Checkpointing in the user's own code is not changed.
    """
    undo: list[Undo] = []
    for module in _checkpointed(root):
        function = module._gradient_checkpointing_func
        if not _is_reentrant(function):
            continue
        plain, keywords = function, {}
        if isinstance(function, functools.partial):
            plain, keywords = function.func, function.keywords
        module._gradient_checkpointing_func = functools.partial(plain, **{**keywords, "use_reentrant": False})
        undo.append(functools.partial(setattr, module, "_gradient_checkpointing_func", function))
    return undo


def release_inputs(root: nn.Module) -> list[Undo]:
    """Remove the hook that makes the output of the embeddings require grad, if only checkpointing needed it.

    Args:
        root: The module that is being fitted, after :func:`make_non_reentrant`.

    Returns:
        Functions that undo it; empty if there was nothing to do.
    """
    if not any(True for _ in _checkpointed(root)):
        return []
    undo: list[Undo] = []
    for model in models_with_input_grads(root):
        model.disable_input_require_grads()
        undo.append(model.enable_input_require_grads)
    return undo


def models_with_input_grads(root: nn.Module) -> list[Any]:
    """The transformers' models in ``root`` on which ``enable_input_require_grads()`` has been called."""
    return [
        module
        for module in root.modules()
        if getattr(module, "_require_grads_hooks", None) or getattr(module, "_require_grads_hook", None) is not None
        if hasattr(module, "disable_input_require_grads")
    ]


def _checkpointed(root: nn.Module) -> Iterator[Any]:
    for module in root.modules():
        if getattr(module, "gradient_checkpointing", False) is True and hasattr(module, "_gradient_checkpointing_func"):
            yield module


def _is_reentrant(function: Any) -> bool:
    if isinstance(function, functools.partial):
        return function.keywords.get("use_reentrant") is not False
    return function is checkpoint.checkpoint  # torch's default is the reentrant form


class ReentrantWatch:
    """Detects trainable parameters that lose their gradients by reentrant checkpointing, in the first step of a phase.

    It costs nothing if reentrant checkpointing is not used.
    """

    def __init__(self) -> None:
        self._used: dict[nn.Parameter, None] = {}
        self._is_inside = False
        self._handle: RemovableHandle | None = None
        self._pending: set[Optimizer] = set()

    def install(self) -> Undo:
        """Start watching; returns a function that stops it."""
        # Torch calls this module-level function, for its warning, at the start of each part with reentrant
        # checkpointing; there is no public hook.
        original = checkpoint.check_backward_validity

        def noting(inputs: Iterable[Any]) -> None:
            if not any(isinstance(x, torch.Tensor) and x.requires_grad for x in inputs):
                self._enter()
                # The warning of torch; its own function would name this file as the origin.
                warnings.warn("None of the inputs have requires_grad=True. Gradients will be None", stacklevel=2)

        checkpoint.check_backward_validity = noting

        def undo() -> None:
            checkpoint.check_backward_validity = original
            self._stop()

        return undo

    def begin(self, optimizers: Iterable[Optimizer]) -> None:
        """Check the next step of each optimizer, because other layers train from now on."""
        self._used.clear()
        self._pending = set(optimizers)

    def check(self, optimizer: Optimizer, root: nn.Module) -> None:
        """Refuse a step if gradients were lost.

        Raises:
            ConfigurationError: If reentrant checkpointing has lost the gradients of trainable parameters.
        """
        if optimizer not in self._pending:
            return
        self._pending.discard(optimizer)
        if not self._pending:
            self._stop()
        held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
        lost = [p for p in self._used if p in held and p.requires_grad and p.grad is None]
        if lost:
            name = next((n for n, p in root.named_parameters() if p is lost[0]), "?")
            raise ConfigurationError(
                f"{len(lost)} trainable parameters (such as {name}) have no gradient: they are used under reentrant "
                f"activation checkpointing, and nothing that goes into it requires grad because the layers below are "
                f"frozen. Call torch.utils.checkpoint.checkpoint with use_reentrant=False; it gives the same "
                f"gradients, and needs no input that requires grad."
            )

    def _enter(self) -> None:
        self._is_inside = bool(self._pending)
        if self._pending and self._handle is None:
            self._handle = register_module_forward_pre_hook(self._note)

    def _note(self, module: nn.Module, inputs: Any) -> None:
        # The checkpointed part runs without grad mode; it ends with the first module that runs in grad mode again.
        self._is_inside = self._is_inside and not torch.is_grad_enabled()
        if self._is_inside:
            self._used.update({p: None for p in module.parameters(recurse=False) if p.requires_grad})

    def _stop(self) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        self._is_inside = False
