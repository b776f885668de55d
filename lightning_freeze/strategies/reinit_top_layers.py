"""Re-initialisation of the top layers before fine-tuning."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import Parameter

from lightning_freeze.arguments import check_arguments
from lightning_freeze.callbacks.layer_callback import Groups, LayerCallback
from lightning_freeze.distributed import write
from lightning_freeze.errors import ConfigurationError
from lightning_freeze.layers.analysis.unused_copies import frozen_by_peft
from lightning_freeze.layers.wording import spans
from lightning_freeze.session.session import Session
from lightning_freeze.strategies.kept_frozen import kept_frozen
from lightning_freeze.strategies.norm_identity import identity_weight


class ReinitTopLayers(LayerCallback):
    """Gives the top blocks new random weights before fine-tuning.

    The top layers of a pre-trained model are specialised in its pre-training task. Starting them afresh makes
    fine-tuning on small data sets more stable (Zhang et al., "Revisiting Few-sample BERT Fine-tuning", ICLR 2021,
    arXiv:2006.05987). Linear layers and embeddings are drawn from a normal distribution, their biases are 0, and norms
    are the identity, as in the published code. A run that is resumed goes on with its own weights. A second ``fit`` of
    the same module begins with new weights again. The gains shrink where training is long enough (same paper).

    Args:
        blocks: How many blocks from the top; the paper searches from 1 to 6. In each tower of several.
        std: Standard deviation of the weights; ``None`` for ``initializer_range`` of the model's config, and 0.02
            where it has none.
        seed: Seed of the draws. They do not change the global random state, and are the same on all ranks.
        groups: See :class:`DiscriminativeLR`.
        verbose: Whether to print the table of layers.

    Raises:
        ConfigurationError: If ``blocks`` is not positive or exceeds the number of blocks, ``std`` is not positive, a
            block has parameters that are neither linear, embeddings nor norms, or another callback keeps new weights
            frozen for the whole run.
    """

    def __init__(
        self,
        blocks: int = 1,
        std: float | None = None,
        seed: int = 0,
        groups: Groups | None = None,
        verbose: bool = True,
    ) -> None:
        check_arguments(ReinitTopLayers, locals())
        super().__init__(groups=groups, verbose=verbose)
        if blocks < 1:
            raise ConfigurationError(
                f"ReinitTopLayers(blocks={blocks!r}): expected a whole number of blocks, 1 or more."
            )
        if std is not None and not 0 < std < math.inf:
            raise ConfigurationError(f"ReinitTopLayers(std={std!r}): expected a finite number greater than 0, or None.")
        self.blocks = blocks
        self.std = std
        self.seed = seed
        self._drawn: dict[Parameter, None] = {}

    def prepare(self, session: Session) -> None:  # noqa: D102
        towers = list(self.stack.towers.values()) or [self.stack.blocks]
        smallest = min(len(tower) for tower in towers)
        if self.blocks > smallest:
            raise ConfigurationError(
                f"ReinitTopLayers(blocks={self.blocks}): the model has {smallest} blocks; expected a number from 1 to "
                f"{smallest}."
            )
        modules = [m for tower in towers for layer in tower[-self.blocks :] for m in layer.modules()]
        with session.holds.lifted():
            frozen = frozen_by_peft(session.module)
        if any(parameter in frozen for module in modules for parameter in module.parameters(recurse=False)):
            raise ConfigurationError(
                "ReinitTopLayers would give random weights to layers that PEFT keeps frozen: they would never be "
                "trained. Expected a model without adapters, or no ReinitTopLayers."
            )
        for module in modules:
            _check_known(module)
        self._drawn = {
            p: None for m in modules if not _is_norm(m) for n, p in m.named_parameters(recurse=False) if n == "weight"
        }
        # The weights of a checkpoint are loaded later, over these.
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(self.seed)
            for module in modules:
                self._initialise(module)

    def check(self, session: Session) -> None:  # noqa: D102
        super().check(session)
        kept = kept_frozen(session)
        layers = [
            layer.name for layer in self.stack.blocks if any(p in self._drawn and p in kept for p in layer.parameters())
        ]
        if layers:
            keepers = dict.fromkeys(kept[p] for p in self._drawn if p in kept)
            raise ConfigurationError(
                f"ReinitTopLayers would give random weights to {spans(layers, self.stack.names)}, and "
                f"{' and '.join(keepers)} keeps them frozen for the whole run: they would never be trained. Expected "
                f"layers that train: freeze others, or leave ReinitTopLayers out."
            )

    def _initialise(self, module: nn.Module) -> None:
        parameters = dict(module.named_parameters(recurse=False))
        weight, bias = parameters.get("weight"), parameters.get("bias")
        if weight is not None and _is_norm(module):
            weight.fill_(identity_weight(module))
        elif weight is not None:
            write(weight, torch.randn(weight.shape) * self._std())  # drawn on the CPU: the same on every device
        if bias is not None:
            bias.zero_()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_drawn": {}}

    def _std(self) -> float:
        if self.std is not None:
            return self.std
        configs = (getattr(module, "config", None) for module in self.stack.module.modules())
        found = (getattr(config, "initializer_range", None) for config in configs)
        return next((float(value) for value in found if isinstance(value, float)), 0.02)


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def _check_known(module: nn.Module) -> None:
    own = dict(module.named_parameters(recurse=False))
    is_linear = isinstance(module, (nn.Linear, nn.Embedding)) or type(module).__name__ == "Conv1D"  # GPT-2's linear
    if own and not (own.keys() <= {"weight", "bias"} and (is_linear or _is_norm(module))):
        raise ConfigurationError(
            f"ReinitTopLayers knows how to initialise linear layers, embeddings and norms, not "
            f"{type(module).__name__} with {', '.join(own)}. Initialise such a model in its own code."
        )
