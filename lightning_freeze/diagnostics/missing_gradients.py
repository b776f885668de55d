"""Whether gradients reach the blocks that train: warns once in a fit of blocks without a gradient in a phase.

The warning is limited to likely mistakes. Heads and poolers are often unused, and so are the last blocks
of a tower whose earlier hidden states are used. A block may also be skipped at random (layer drop), or have an
optimizer that rarely steps: only steps of the block's own optimizer count as evidence.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch.nn import Parameter
from torch.optim import Optimizer

from lightning_freeze.distributed import foreign_wrapper
from lightning_freeze.layers import LayerStack
from lightning_freeze.layers.wording import spans
from lightning_freeze.run_warnings.record import warn_in_run
from lightning_freeze.session.observer import Observer, PhaseChange
from lightning_freeze.session.session import Session

#: Steps without a gradient that are hardly a coincidence: with half of all blocks dropped at random, 1 in 65,536.
ENOUGH = 16


class MissingGradients(Observer):
    """Looks at the gradients of blocks in the first optimizer steps of each phase, until each has had one.

    Args:
        stack: The layers, as a callback that freezes sees them.
        session: The running fit.
    """

    def __init__(self, stack: LayerStack, session: Session) -> None:
        self._session = session
        self._stack = stack
        self._missing: dict[Optimizer, dict[str, list[Parameter]]] = {}
        self._steps: dict[Optimizer, int] = {}
        self._reached: set[str] = set()
        self._is_over = False

    def start_training(self) -> None:  # noqa: D102
        # Flat or partitioned parameters keep their gradients elsewhere.
        self._is_over = foreign_wrapper(self._session.trainer, self._session.module) is not None

    def before_step(self, optimizer: Optimizer) -> None:
        """Check which blocks of an optimizer have a gradient before it steps."""
        if self._is_over:
            return
        if optimizer not in self._missing:
            self._missing[optimizer] = dict(self._trainable(optimizer))
            self._steps[optimizer] = 0
        if self._missing[optimizer]:
            self._look(optimizer)

    def change_phase(self, change: PhaseChange) -> None:  # noqa: D102
        self._judge()

    def end_training(self) -> None:  # noqa: D102
        self._judge()

    def _judge(self) -> None:
        """Decide with the steps so far, if no block at all has had a gradient in the phase that ends."""
        open_ = [(self._steps[optimizer], names) for optimizer, names in self._missing.items() if names]
        if not self._is_over and not self._reached and sum(steps * len(names) for steps, names in open_) >= ENOUGH:
            self._warn({name for steps, names in open_ for name in names if steps}, max(steps for steps, _ in open_))
        self._missing.clear()
        self._steps.clear()
        self._reached.clear()

    def _trainable(self, optimizer: Optimizer) -> Iterator[tuple[str, list[Parameter]]]:
        held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
        for layer in self._stack.blocks:
            parameters = [p for p in layer.parameters() if p.requires_grad and p in held]
            # Private; no public name shows hooks that consume a gradient during backward, as fused optimizers do.
            if parameters and not any(getattr(p, "_post_accumulate_grad_hooks", None) for p in parameters):
                yield layer.name, parameters

    def _look(self, optimizer: Optimizer) -> None:
        missing = self._missing[optimizer]
        reached = {name for name, parameters in missing.items() if any(p.grad is not None for p in parameters)}
        self._reached |= reached
        for name in missing.keys() & self._reached:  # a block may be spread over several optimizers
            del missing[name]
        # A step without any gradient proves nothing: there was no backward, or its gradients cannot be seen.
        if missing and (reached or self._is_gradient_seen()):
            self._steps[optimizer] += 1
            if self._steps[optimizer] >= ENOUGH:
                self._missing[optimizer] = {}
                self._warn({name for name in missing if not self._is_unused_top(name)}, ENOUGH)

    def _is_gradient_seen(self) -> bool:
        groups = (group for optimizer in self._session.trainer.optimizers for group in optimizer.param_groups)
        return any(parameter.grad is not None for group in groups for parameter in group["params"])

    def _is_unused_top(self, name: str) -> bool:
        """Whether gradients enter the tower only below a block, so that the loss does not use its output."""
        layer = self._stack[name]
        reached = [b.index for b in self._stack.blocks if b.tower == layer.tower and b.name in self._reached]
        return bool(reached) and max(reached) < layer.index

    def _warn(self, names: set[str], steps: int) -> None:
        if not names:
            return
        self._is_over = True
        if self._session.is_first("missing gradients"):
            layers = spans([name for name in self._stack.names if name in names], self._stack.names)
            layer, them = ("Layer", "it") if len(names) == 1 else ("Layers", "them")
            warn_in_run(
                self._session.trainer,
                f"{layer} {layers} shall train, but no gradient has reached {them} in {steps} optimizer steps: the "
                f"loss does not depend on {them}, or something hides {them} from autograd. That may be torch.no_grad, "
                f"detach, reentrant activation checkpointing, or an autograd function of the model's own, such as "
                f"Reformer's reversible layers, which train only while the embeddings do: unfreeze those too. Freeze "
                f"what is not meant to train.",
            )
