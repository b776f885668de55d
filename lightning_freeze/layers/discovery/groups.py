"""Layers from an explicit, ordered map of layer name to module-name prefixes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from lightning_freeze.errors import suggest
from lightning_freeze.layers.discovery.module_tree import clean_name
from lightning_freeze.layers.discovery.structure import Kind, LayerSpec

Groups = Mapping[str, str | Sequence[str]]
"""Layer name to the module-name prefixes that it holds, in the order of the data flow."""


def layers_from_groups(module: nn.Module, groups: Groups) -> list[LayerSpec]:
    """Turn an explicit map into layers.

    A prefix matches whole dotted components (``"enc"`` does not match ``"encoder.x"``) relative to ``module``; a
    parameter's own full name is a prefix too. Components that ``torch.compile`` adds may be left out.

    Args:
        module: The module that the names refer to.
        groups: Ordered map, for instance ``{"stem": ["conv", "bn"], "head": "fc"}``.

    Returns:
        One layer for each group, in the map's order.

    Raises:
        ValueError: If the map or a group is empty, a prefix matches nothing, or one module stands in two groups.
    """
    if not isinstance(groups, Mapping):
        raise ValueError(
            f"groups must be a map from layer name to module-name prefixes, got {type(groups).__name__}: {groups!r}."
        )
    if not groups:
        raise ValueError("groups is empty: give at least one layer, as in {'body': ['encoder'], 'head': ['fc']}.")
    names = _names(module)
    taken: dict[str, str] = {}
    layers = []
    for group, prefixes in groups.items():
        _check_name(group)
        listed = [prefixes] if isinstance(prefixes, str) else list(prefixes)
        if not listed:
            raise ValueError(f"Group {group!r} is empty: give the module names that belong to it, or leave it out.")
        spec = LayerSpec(group, _kind(group))
        for prefix in listed:
            name = _resolve(prefix, group, names)
            _check_free(name, group, taken)
            taken[name] = group
            spec.prefixes.append(name)
        layers.append(spec)
    return layers


def _names(module: nn.Module) -> dict[str, str]:
    """All valid prefixes, with the full name that each stands for."""
    full = [name for name, _ in module.named_modules(remove_duplicate=False) if name]
    full += [name for name, _ in module.named_parameters(remove_duplicate=False)]
    return {**{clean_name(name): name for name in reversed(full)}, **{name: name for name in full}}


def _check_name(group: object) -> None:
    if not isinstance(group, str) or not group or any(letter in ",:*?[]%" or letter.isspace() for letter in group):
        raise ValueError(
            f"{group!r} is no name for a group: it must be a non-empty string without spaces and without any of ,:*?[]%"
        )
    if group == "all":
        raise ValueError("'all' is no name for a group: in selectors it stands for all layers.")


def _kind(group: str) -> Kind:
    return "embeddings" if group == "embeddings" else "head" if group == "head" else "group"


def _resolve(prefix: object, group: str, names: Mapping[str, str]) -> str:
    if not isinstance(prefix, str):
        raise ValueError(f"Group {group!r} holds {prefix!r}: expected the name of a module or a parameter.")
    if prefix not in names:
        raise ValueError(
            f"Group {group!r}: no module or parameter is called {prefix!r}.{suggest(prefix, names)} "
            "A prefix matches whole name components, counted from the module that is given."
        )
    return names[prefix]


def _check_free(name: str, group: str, taken: Mapping[str, str]) -> None:
    for other, owner in taken.items():
        if name == other or name.startswith(f"{other}.") or other.startswith(f"{name}."):
            where = f"groups {owner!r} and {group!r}" if owner != group else f"group {group!r} twice"
            deeper = max(name, other, key=len)
            raise ValueError(f"{deeper!r} stands in {where}: each module belongs to one group only.")
