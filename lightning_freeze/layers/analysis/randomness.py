"""What changes in a layer without being a parameter: random noise, and statistics that change in train mode.

``eval()`` stops all of it except batch statistics that are never stored, but it matters which module is in eval mode. A
dropout module has its own flag. Functional dropout follows the module whose code calls it. Layer drop and SpecAugment
follow a container that holds many layers, so they stay active in frozen layers while any other layer of that container
trains. Weight normalisation is not listed: it computes the same weight in both modes.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

from lightning_freeze.layers.layer import Layers
from lightning_freeze.layers.wording import runs

_PATH = re.compile(r"drop_?path|path_?drop|stochastic_?depth|survival", re.IGNORECASE)
_RATES = re.compile(r"drop|jitter|^mask_(time|feature)_prob$|^survival_prob", re.IGNORECASE)
_FRAMEWORK = ("torch.", "lightning.", "pytorch_lightning.", "transformers.modeling_utils", "transformers.generation")


@dataclass(frozen=True)
class RandomSource:
    """One source of change in layers that is not a parameter.

    Attributes:
        kind: What it is: ``"dropout"``, ``"drop path"``, ``"layer drop"``, ``"SpecAugment"``, ``"router jitter"``,
            ``"BatchNorm statistics"``, ``"batch statistics"``, ``"spectral norm"``, ``"RReLU"``.
        name: Full name of the module whose train or eval mode controls it.
        module: That module.
        layers: Names of the layers that it can disturb: the one that the module belongs to; for a container all the
            layers in it.
        rate: Its probability, ``None`` where it has none.
        is_shared: Whether the module is a container that spans several layers, or belongs to none.
        stops_in_eval: Whether ``eval()`` stops it.
    """

    kind: str
    name: str
    module: nn.Module
    layers: tuple[str, ...]
    rate: float | None = None
    is_shared: bool = False
    stops_in_eval: bool = True

    @property
    def is_active(self) -> bool:
        """Whether it affects its layers in the present mode of its module."""
        return self.module.training or not self.stops_in_eval


def find_random_sources(stack: Layers) -> list[RandomSource]:
    """Find everything in the layers that changes from pass to pass although no parameter does.

    Modules are recognised by their type. Functional randomness (``dropout(x, self.p, self.training)``, layer drop,
    SpecAugment) is read from the source of the modules' classes, with the rates as they are set now.

    Args:
        stack: The layers; their modules may be in any mode, and nothing is run.

    Returns:
        One entry for each module and kind whose rate is not zero, in registration order.
    """
    found = []
    layers_below = _LayersBelow(stack)
    for name, module in stack.module.named_modules():
        layer = stack.layer_of_module(module)
        for kind, rate, stops_in_eval in _sources(module):
            layers = (layer.name,) if layer is not None else layers_below.layers(name, module)
            if layer is None and kind == "layer drop":
                layers = tuple(other for other in layers if stack[other].is_block)
            if layers:
                found.append(RandomSource(kind, name, module, layers, rate, layer is None, stops_in_eval))
    return found


def active_random_sources(stack: Layers) -> list[RandomSource]:
    """The random sources that are active in frozen layers, with the current modes and ``requires_grad``.

    Args:
        stack: The layers.

    Returns:
        Active sources, with the frozen ones among the layers that they disturb.
    """
    frozen = {x.name for x in stack if x.parameters() and not any(p.requires_grad for p in x.parameters())}
    if not frozen:
        return []
    active = [(noise, tuple(n for n in noise.layers if n in frozen)) for noise in find_random_sources(stack)]
    return [
        RandomSource(noise.kind, noise.name, noise.module, layers, noise.rate, noise.is_shared, noise.stops_in_eval)
        for noise, layers in active
        if layers and noise.is_active
    ]


def random_source_lines(stack: Layers, noises: Iterable[RandomSource]) -> list[str]:
    """What :func:`active_random_sources` found, as text: one line for each cause."""
    causes: dict[tuple[str, str], list[str]] = {}
    for noise in noises:
        kind = f"{noise.kind} ({noise.rate:g})" if noise.is_shared and noise.rate is not None else noise.kind
        if noise.is_shared:
            why = f", which follows the mode of {noise.name or 'the whole module'}"
        else:
            why = ", in train mode" if noise.stops_in_eval else ", in eval mode too: no running ones are kept"
        causes.setdefault((kind, why), []).extend(noise.layers)
    return [f"not still in frozen {runs(stack, layers)}: {kind}{why}" for (kind, why), layers in causes.items()]


class _LayersBelow:
    """The layers below a container."""

    def __init__(self, stack: Layers) -> None:
        self._stack = stack

    def layers(self, name: str, module: nn.Module) -> tuple[str, ...]:
        found = self._below(module)
        while not found and name:  # a dropout outside of all layers belongs to its neighbours
            name = name.rpartition(".")[0]
            found = self._below(self._stack.module.get_submodule(name))
        return tuple(layer.name for layer in self._stack if layer.name in found and layer.kind != "head")

    def _below(self, module: nn.Module) -> set[str]:
        owners = (self._stack.layer_of_module(part) for part in module.modules())
        return {owner.name for owner in owners if owner is not None}


def _sources(module: nn.Module) -> Iterator[tuple[str, float | None, bool]]:
    """Kind, rate and whether ``eval()`` turns it off, for what follows the ``training`` flag of this module itself."""
    if isinstance(module, _DropoutNd):
        yield from _positive("dropout", module.p)
    elif isinstance(module, nn.RNNBase):
        yield from _positive("dropout", module.dropout if module.num_layers > 1 else 0.0)
    elif isinstance(module, nn.MultiheadAttention):
        yield from _positive("dropout", module.dropout)
    elif isinstance(module, nn.RReLU):
        yield "RReLU", None, True
    elif isinstance(module, _NormBase):
        yield from _statistics(module)
    elif isinstance(module, _SpectralNorm) and getattr(module, "_u", None) is not None:
        yield "spectral norm", None, True
    elif _PATH.search(type(module).__name__):
        rates = [x for key, x in vars(module).items() if _is_number(x) and (key == "p" or _RATES.search(key))]
        if not rates or max(rates) > 0:
            yield "drop path", max(rates, default=None), True
    else:
        yield from _functional(module)
    if any(isinstance(hook, SpectralNorm) for hook in module._forward_pre_hooks.values()):
        yield "spectral norm", None, True


def _positive(kind: str, rate: float) -> Iterator[tuple[str, float | None, bool]]:
    if rate > 0:
        yield kind, rate, True


def _statistics(module: _NormBase) -> Iterator[tuple[str, float | None, bool]]:
    kind = "BatchNorm" if isinstance(module, _BatchNorm) else "InstanceNorm"
    if module.running_mean is not None:
        yield f"{kind} statistics", None, True
    elif kind == "BatchNorm":  # without them, an instance normalisation depends on the sample alone
        yield "batch statistics", None, False


def _functional(module: nn.Module) -> Iterator[tuple[str, float | None, bool]]:
    """What the code of the module's class does by itself, with the rates that this module has."""
    rates: dict[str, float] = {}
    kind_of_module: type = type(module)
    for chain in _rates_in(kind_of_module):
        value = _value(module, chain)
        if _is_number(value) and 0 < value <= 1 and _applies(module, chain[-1]):
            kind = _kind_of(chain[-1])
            rates[kind] = max(float(value), rates.get(kind, 0.0))
    for kind, rate in rates.items():
        yield kind, rate, True


def _kind_of(name: str) -> str:
    lowered = name.lower()
    if "layerdrop" in lowered or "layer_drop" in lowered:
        return "layer drop"
    if _PATH.search(name):
        return "drop path"
    if lowered.startswith("mask_"):
        return "SpecAugment"
    return "router jitter" if "jitter" in lowered else "dropout"


def _applies(module: nn.Module, rate: str) -> bool:
    config: Any = getattr(module, "config", None)
    return not rate.startswith("mask_") or getattr(config, "apply_spec_augment", True) is not False


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _value(module: nn.Module, chain: Sequence[str]) -> Any:
    value: Any = module
    for name in chain:
        value = getattr(value, name, None)
    return value


@lru_cache(maxsize=1024)
def _rates_in(cls: Hashable) -> tuple[tuple[str, ...], ...]:
    """Attributes such as ``("config", "layerdrop")`` that methods of a class use together with ``self.training``."""
    found: dict[tuple[str, ...], None] = {}
    assert isinstance(cls, type)
    for owner in cls.__mro__:
        if (owner.__module__ + ".").startswith(_FRAMEWORK) or owner is object:
            continue
        for function in vars(owner).values():
            if inspect.isfunction(function):
                found.update(dict.fromkeys(_rates_of(function)))
    return tuple(found)


def _rates_of(function: Any) -> list[tuple[str, ...]]:
    if "training" not in function.__code__.co_names or not function.__code__.co_varnames:
        return []  # avoids reading the source
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError, ValueError):
        return []
    this = function.__code__.co_varnames[0]
    chains = [chain for node in ast.walk(tree) if (chain := _chain(node, this))]
    return [chain for chain in chains if _RATES.search(chain[-1])] if ("training",) in chains else []


def _chain(node: ast.AST, this: str) -> tuple[str, ...]:
    """``("config", "layerdrop")`` for ``self.config.layerdrop``, empty if it is no attribute of ``self``."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    return tuple(names[::-1]) if names and isinstance(node, ast.Name) and node.id == this else ()
