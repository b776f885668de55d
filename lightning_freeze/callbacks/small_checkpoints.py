"""Which weights the checkpoints of a run leave out: those of frozen layers that never changed."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from torch import Tensor
from torch.nn import Module, Parameter

from lightning_freeze.checkpoints.base_weights import base_weights, converted_dtype
from lightning_freeze.checkpoints.saving import leave_out_when_saving, saves_whole_weights
from lightning_freeze.run_warnings.record import warn_in_run
from lightning_freeze.session.observer import Observer, PhaseChange
from lightning_freeze.session.session import Member, Session


class SmallCheckpoints(Observer):
    """Follows the phases: a layer that trains is in the checkpoints from then on.

    Args:
        session: The running fit.
        members: The callbacks with ``save_frozen=False``.
        new: Parameters and buffers that no pre-trained checkpoint gave. They are saved although they are frozen,
            because nothing could give their random values again.
    """

    def __init__(self, session: Session, members: Collection[Member], new: Collection[Tensor]) -> None:
        self._session = session
        omitted = (pair for member in members for pair in member.omitted_when_frozen().items())
        self._layers = {parameter: layer for parameter, layer in omitted if parameter not in new}
        buffers = session.module.named_buffers(remove_duplicate=False)
        self._new_buffers = {name for name, buffer in buffers if buffer in new}  # by name: a move replaces buffers
        strategy = session.trainer.strategy
        self._is_possible = not saves_whole_weights(strategy)
        if self._is_possible:
            self._base = base_weights(session.module)
            self._base.learn(session.module, self._frozen(), converted_dtype(session.trainer))
            self._update()
        else:
            names = " and ".join(dict.fromkeys(type(member).__name__ for member in members))
            warn_in_run(
                session.trainer,
                f"{names}(save_frozen=False) has no effect under {type(strategy).__name__}, which writes the weights "
                f"in its own form: checkpoints hold all weights. Use strategy='ddp' for small ones.",
            )

    def start_fit(self) -> None:  # noqa: D102
        if self._is_possible:
            leave_out_when_saving(self._session.trainer)

    def start_training(self) -> None:  # noqa: D102
        self._update()

    def change_phase(self, change: PhaseChange) -> None:  # noqa: D102
        self._update()

    def _update(self) -> None:
        if self._is_possible:
            self._base.leave_out(self._frozen(), self._session.module)

    def _frozen(self) -> dict[str, str]:
        """Return the name in the state dict and the name of the layer of what is frozen now."""
        with self._session.requires_grad_as_given():
            return dict(self._named_frozen(self._session.module))

    def _named_frozen(self, module: Module) -> Iterator[tuple[str, str]]:
        for name, parameter in module.named_parameters(remove_duplicate=False):
            if self._is_omitted(parameter):
                yield name, self._layers[parameter]
        modules = dict(module.named_modules(remove_duplicate=False))
        for name, _ in module.named_buffers(remove_duplicate=False):
            around = _parameters_around(name, modules)
            if name not in self._new_buffers and around and all(map(self._is_omitted, around)):
                yield name, self._layers[around[0]]

    def _is_omitted(self, parameter: Parameter) -> bool:
        return parameter in self._layers and not parameter.requires_grad


def _parameters_around(buffer: str, modules: dict[str, Module]) -> list[Parameter]:
    """The parameters of the smallest module around a buffer that has any."""
    parts = buffer.split(".")[:-1]
    owners = (modules[".".join(parts[:depth])] for depth in range(len(parts), -1, -1))
    return next((found for owner in owners if (found := list(owner.parameters()))), [])
