"""What is known of the weights of a module as it was built: their fingerprints, and copies of some."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from weakref import WeakKeyDictionary

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.nn import Module, Parameter

from lightning_freeze.checkpoints.fingerprint import fingerprint, has_plain_content
from lightning_freeze.checkpoints.loaded import is_loaded
from lightning_freeze.checkpoints.named_tensors import named_tensors, own_tensors

#: Building a module writes to each weight a few times, and every optimizer step once or more. ``trunc_normal_`` of timm
#: alone writes five times, ``nn.Linear`` once before it, and loading a checkpoint once after it.
_MOST_WRITES = 8
_VERSIONS: WeakKeyDictionary[Module, dict[str, int]] = WeakKeyDictionary()
_TRAINED: WeakKeyDictionary[Module, set[str]] = WeakKeyDictionary()
_KNOWN: WeakKeyDictionary[Module, BaseWeights] = WeakKeyDictionary()


class BaseWeights:
    """The fingerprints of weights of a module as it was built.

    Attributes:
        layers: What checkpoints leave out, if it is unchanged: name in the state dict to the name of the layer.
    """

    def __init__(self) -> None:
        self.layers: dict[str, str] = {}
        self._kept: dict[str, Tensor] = {}
        self._fingerprints: dict[str, set[str]] = {}

    def learn(self, module: Module, names: Iterable[str], dtype: torch.dtype | None = None) -> None:
        """Take the fingerprints of weights that nothing has written to since the module was built.

        Those that an earlier fit has trained, or another callback has set, stay unknown: building the module would not
        give them again. What is known from an earlier fit stays as it is.

        Args:
            module: The module, before a checkpoint is loaded and before it trains.
            names: Names in the state dict.
            dtype: What the run converts the weights to after that; ``None`` if it leaves them as they are.
        """
        state = named_tensors(module)
        written = _written(state, _VERSIONS.get(module, {})) | _TRAINED.get(module, set())
        for name in names:
            tensor = state.get(name)
            if has_plain_content(tensor) and name not in written and name not in self._fingerprints:
                self._fingerprints[name] = {fingerprint(tensor)}  # type: ignore[arg-type]
                if dtype is not None and tensor.is_floating_point():  # type: ignore[union-attr]
                    self._fingerprints[name].add(fingerprint(tensor.detach().to(dtype)))  # type: ignore[union-attr]

    def unchanged(self, name: str, value: object) -> str | None:
        """The fingerprint of a value that has the content with which the weight of this name was built, else ``None``.

        Args:
            name: Name in the state dict.
            value: The value.
        """
        if name not in self._fingerprints or not has_plain_content(value):
            return None
        digest = fingerprint(value)  # type: ignore[arg-type]
        return digest if digest in self._fingerprints[name] else None

    def leave_out(self, layers: Mapping[str, str], module: Module) -> None:
        """Set what checkpoints leave out from now on, and keep what they have left out until now.

        Args:
            layers: Name in the state dict to the name of the layer.
            module: The module.
        """
        self.keep(self.layers.keys() - layers.keys(), module)
        self.layers = dict(layers)

    def keep(self, names: Iterable[str], module: Module) -> None:
        """Copy weights that are about to change to host memory, so that earlier checkpoints can still be loaded.

        Args:
            names: Names in the state dict; those that have changed already are passed over.
            module: The module.
        """
        changing = list(names)
        state = module.state_dict() if changing else {}
        for name in changing:
            digest = self.unchanged(name, state.get(name))
            if digest is not None and digest not in self._kept:
                self._kept[digest] = state[name].detach().to("cpu", copy=True)

    def kept(self, digest: str) -> Tensor | None:
        """The copy with this fingerprint."""
        return self._kept.get(digest)


def base_weights(module: Module) -> BaseWeights:
    """What is known of the weights of a module as built, the same object in every fit of it.

    A second fit goes by what the module was built with, not by what the first fit has made of it.
    """
    return _KNOWN.setdefault(module, BaseWeights())


def converted_dtype(trainer: Trainer) -> torch.dtype | None:
    """What a trainer converts the weights to, after the module was built and a checkpoint was loaded.

    Args:
        trainer: The running trainer.
    """
    return {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}.get(str(trainer.precision))


def known_base_weights(module: Module) -> BaseWeights | None:
    """As :func:`base_weights`, but ``None`` if no fit has asked for it."""
    return _KNOWN.get(module)


def kept_weight(digest: str, target: Tensor) -> Tensor | None:
    """The copy of what a weight of a module was built with, if it has that fingerprint and was changed since.

    Args:
        digest: The fingerprint.
        target: The weight, as the module has it.
    """
    for module, base in list(_KNOWN.items()):
        kept = base.kept(digest)
        if kept is not None and any(target is own for own in (*module.parameters(), *module.buffers())):
            return kept
    return None


def note_versions(module: Module) -> None:
    """Note how often each weight of a module was written to before its first fit, which costs nothing.

    So :meth:`BaseWeights.learn` sees what was written to since, in a fit without small checkpoints too.

    Args:
        module: The module as it was built.
    """
    if module not in _VERSIONS:
        _VERSIONS[module] = {
            name: _version_of(tensor) for name, tensor in own_tensors(module) if has_plain_content(tensor)
        }


def note_reloaded(module: Module, names: Iterable[str]) -> None:
    """Note that weights were written to, and got the content that they had.

    Args:
        module: The module.
        names: Names in the state dict.
    """
    versions, state = _VERSIONS.get(module, {}), named_tensors(module)
    for name in versions.keys() & set(names):
        if isinstance(tensor := state.get(name), Tensor):
            versions[name] = _version_of(tensor)


def note_trained(module: Module) -> None:
    """Note which parameters of a module train now, for later fits of it.

    An optimizer that writes through ``parameter.data`` leaves the versions as they are.

    Args:
        module: The module in a running fit.
    """
    names = {name for name, p in module.named_parameters(remove_duplicate=False) if p.requires_grad}
    _TRAINED.setdefault(module, set()).update(names)


def _written(state: Mapping[str, object], built: Mapping[str, int]) -> set[str]:
    """Return the names of what was written to since the module was built."""
    plain = {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor) and has_plain_content(tensor)}
    versions = {name: _version_of(tensor) for name, tensor in plain.items()}
    # An earlier fit without the callbacks of this package has left no note.
    written = {name for name, now in versions.items() if now > _MOST_WRITES or now != built.get(name, now)}
    # transformers puts what it loads in the place of a parameter, so that nothing has written to it.
    written |= {name for name, tensor in plain.items() if is_loaded(tensor) and versions[name] > 0}
    # BatchNorm moves its statistics without a new version, but it counts the batches.
    owners = {name.rpartition(".")[0] for name in written}
    buffers = {name for name, tensor in plain.items() if not isinstance(tensor, Parameter)}
    return written | {name for name in buffers if name.rpartition(".")[0] in owners}


def _version_of(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version  # those have none, and cannot train
