"""A head that is frozen at its random initialisation: whatever is learned below has to pass through random weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils.hooks import RemovableHandle

from lightning_freeze.compatibility.checks import ever_trains
from lightning_freeze.compatibility.compile import is_compiled
from lightning_freeze.diagnostics.new_layers import NewLayer, is_untouched
from lightning_freeze.run_warnings.record import warn_in_run
from lightning_freeze.session.observer import Observer
from lightning_freeze.session.session import Session


class UntrainedHead(Observer):
    """Looks, in the first batch, for new layers that take part in it and that nothing ever trains; warns once.

    Args:
        session: The running fit, when all of its members have joined.
        new: The layers that are at their random initialisation.
    """

    def __init__(self, session: Session, new: list[NewLayer]) -> None:
        self._session = session
        self._new = new
        self._used: dict[str, NewLayer] = {}
        self._handles: list[RemovableHandle] = []
        session.at_close(self._stop)

    def start_batch(self) -> None:  # noqa: D102
        session = self._session
        if not session.is_running:
            return
        new, self._new = self._new, []
        if not new or session.trainer.global_step or is_compiled(session.module):
            return
        trained = ever_trains(session)
        for layer in new:
            frozen = not any(p in trained for p in layer.module.parameters())
            # A checkpoint that was restored meanwhile has written to it.
            if frozen and is_untouched(layer.module) and self._session.stack.layer_of(layer.weight) is not None:
                self._handles.append(layer.module.register_forward_hook(self._note(layer)))

    def before_backward(self) -> None:  # noqa: D102
        used, self._used = self._used, {}
        self._stop()
        if used and self._session.is_first("untrained head"):
            self._warn(list(used.values())[-1])

    def _note(self, layer: NewLayer) -> Callable[..., None]:
        def note(module: Any, inputs: Any, output: Any) -> None:
            self._used[layer.name] = layer

        return note

    def _warn(self, layer: NewLayer) -> None:
        session = self._session
        owner = session.stack.layer_of(layer.weight)
        holders = [type(holder).__name__ for holder in session.holds.holders(layer.weight)]
        who = " and ".join(holders) if holders else type(session.module).__name__
        warn_in_run(
            session.trainer,
            f"{layer.name} (layer {owner.name if owner else '?'}) is at its random initialisation, because no "
            f"checkpoint has its weights, and {who} keeps it frozen for the whole run: the model learns only what "
            f"passes through random weights. Let this layer train, or load weights for it.",
        )

    def _stop(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
