"""Modules and parameters that a strategy or a precision plugin replaces after the layers were found."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lightning.pytorch import LightningModule
from torch.nn import Module, Parameter

from lightning_freeze.errors import ConfigurationError


class Snapshot:
    """The modules and parameters of a model by name, as they are when its layers are found."""

    def __init__(self, module: LightningModule) -> None:
        self._modules = dict(module.named_modules())
        self._parameters = dict(module.named_parameters())

    def replaced_modules(self, module: LightningModule) -> list[tuple[Module, Module]]:
        """Each module that has been replaced, with its replacement (``SyncBatchNorm``, for instance)."""
        now = dict(module.named_modules())
        return [(old, now[name]) for name, old in self._modules.items() if now.get(name, old) is not old]

    def check_parameters(
        self, owners: Sequence[str], module: LightningModule, is_held: Callable[[Parameter], bool]
    ) -> None:
        """Refuse parameters that have been replaced by others.

        Args:
            owners: The names of the callbacks that change what trains, or at which rate, during the run.
            module: The module that is being fitted, as the strategy has set it up.
            is_held: Whether a parameter is held frozen.

        Raises:
            ConfigurationError: If a callback refers to a parameter that no longer belongs to the model.
        """
        now = dict(module.named_parameters())
        for name, old in self._parameters.items():
            new = now.get(name, old)
            if new is not old and (owners or (is_held(old) and new.requires_grad)):
                raise ConfigurationError(
                    f"{name} has been replaced by another parameter since the layers of {type(module).__name__} were "
                    f"found, by the strategy or the precision plugin, so what was decided about it is lost. Build the "
                    f"model in configure_model, or under trainer.init_module(), where it gets its final parameters."
                )
