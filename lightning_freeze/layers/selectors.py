"""The selector grammar: one line of text that names layers or parameters.

A selector is one or more terms, separated by commas; it selects everything that any of its terms selects.

=====================  ====================================================================================
term                   selects
=====================  ====================================================================================
``embeddings``         the embeddings (of all towers)
``head``               the head (of all towers)
a layer's name         that layer: ``3``, ``encoder.3``, ``vision.embeddings``, or a name from a ``groups`` map
``3``, ``-1``          one block; negative numbers count from the end, the blocks of all towers one after another
``:8``, ``4:8``, ``::2``  blocks, as a Python slice
``encoder``            all blocks of one tower
``encoder.:6``         blocks of one tower; a number or a slice, as above
``75%``                the embeddings and the first 75% of the blocks, to the nearest whole block, halves down; of
                       networks that feed nothing into one another, of each; blocks that run side by side stay
                       together
``all``                all layers
a module's name        everything below the module of that full name (``message_passing`` as ``message_passing.*``);
                       a layer or a tower of the same name comes first
``*.LayerNorm.*``      parameters whose full name is or matches this, case-sensitive (``*``, ``?``, ``[...]``)
=====================  ====================================================================================
"""

from __future__ import annotations

import fnmatch
import glob
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from torch import nn

from lightning_freeze.errors import suggest
from lightning_freeze.layers.discovery.module_tree import clean_name
from lightning_freeze.layers.layer import Layer, Layers
from lightning_freeze.layers.modes import eval_modules
from lightning_freeze.layers.wording import abbreviate

_INTEGER = re.compile(r"-?\d+")
_SLICE = re.compile(r"(-?\d+)?:(-?\d+)?(?::(-?\d+)?)?")
_PERCENT = re.compile(r"(\d+(?:\.\d+)?)\s*%")


@dataclass(frozen=True)
class Selection:
    """What a selector names.

    Attributes:
        layers: Layers that are selected as a whole, in stack order.
        parameters: Parameters of these layers and those that a glob matched, in stack order, each once.
        modules: Modules that may go to ``eval()`` when the selection is frozen: all modules of the whole layers, and
            every other module whose parameters are all selected, unless it belongs to a layer that is not selected.
    """

    layers: tuple[Layer, ...]
    parameters: tuple[nn.Parameter, ...]
    modules: tuple[nn.Module, ...]


def select(stack: Layers, selector: str) -> Selection:
    """Resolve a selector.

    Args:
        stack: The layers to choose from.
        selector: Comma-separated terms of the grammar above.

    Returns:
        The union of what the terms select. The module is not changed.

    Raises:
        ValueError: If the selector or a term is empty or malformed, or selects nothing.
    """
    if not isinstance(selector, str):
        raise ValueError(f"A selector is a string such as 'embeddings,:8', got {selector!r}.")
    layers: set[int] = set()
    parameters: set[int] = set()
    for term in (part.strip() for part in selector.split(",")):
        if not term:
            raise _error(stack, selector, "is empty" if not selector.strip() else "has an empty term")
        if any(letter in term for letter in "*?[") or term in stack.parameter_names:
            parameters |= _glob(stack, term)
        elif _names_module(stack, term):
            parameters |= _below(stack, term)
        else:
            layers |= {layer.index for layer in _layers(stack, term)}
    return _selection(stack, layers, parameters)


def _names_module(stack: Layers, term: str) -> bool:
    """Whether a term is the full name of a module, and of no layer or tower, which come first."""
    if term in stack or term in ("all", "embeddings", "head") or _split(stack, term)[0]:
        return False
    return term in _module_names(stack) and not (_INTEGER.fullmatch(term) or _SLICE.fullmatch(term))


def _module_names(stack: Layers) -> set[str]:
    return {clean_name(name) for name, _ in stack.module.named_modules(remove_duplicate=False) if name}


def _below(stack: Layers, term: str) -> set[int]:
    """Identities of the parameters below a module."""
    if not any(clean_name(name).startswith(f"{term}.") for name, _ in stack.module.named_parameters()):
        raise _error(stack, term, "selects nothing: that module has no parameters", near=False)
    return _glob(stack, f"{glob.escape(term)}.*")


def _layers(stack: Layers, term: str) -> Sequence[Layer]:
    """The layers that one term without a glob selects."""
    if term in stack:
        exact = stack[term]
        return _of_kind(stack, exact.kind) if term in ("embeddings", "head") else [exact]
    if term == "all":
        return [layer for layer in stack if not layer.is_bystander]
    if term in ("embeddings", "head"):
        found = _of_kind(stack, term)
        if not found:
            raise _error(stack, term, "selects nothing: this model has no such layer", near=False)
        return found
    if "%" in term:
        return _percent(stack, term)
    tower, blocks, rest = _split(stack, term)
    if rest == "":
        return blocks
    if _INTEGER.fullmatch(rest):
        return [_single(stack, term, int(rest), blocks, tower)]
    match = _SLICE.fullmatch(rest)
    if match is None:
        raise _error(stack, term, "names no layer, tower or module")
    start, stop, step = (int(group) if group else None for group in match.groups())
    if step == 0:
        raise _error(stack, term, "is malformed: the step of a slice must not be 0", near=False)
    found = list(blocks)[start:stop:step]
    if not found:
        raise _error(stack, term, f"selects nothing: there are {len(blocks)} blocks{_of(tower)}", near=False)
    return found


def _of_kind(stack: Layers, kind: str) -> list[Layer]:
    return [layer for layer in stack if layer.kind == kind and not layer.is_bystander]


def _split(stack: Layers, term: str) -> tuple[str, Sequence[Layer], str]:
    """Split ``encoder.:6`` into the tower, its blocks, and the rest; without a tower all blocks count."""
    towers = stack.towers
    names = {
        **{alias: label for alias, label in stack.tower_aliases.items() if label in towers},
        **{t: t for t in towers},
    }
    names |= {alias.removesuffix("_model").removesuffix("_tower"): label for alias, label in list(names.items())}
    for name in sorted(names, key=len, reverse=True):
        if term == name:
            return name, towers[names[name]], ""
        if term.startswith(f"{name}.") and len(term) > len(name) + 1:
            rest = term[len(name) + 1 :]
            if _INTEGER.fullmatch(rest) or _SLICE.fullmatch(rest):
                return name, towers[names[name]], rest
    nested = [layer for tower, layers in towers.items() if tower.startswith(f"{term}.") for layer in layers]
    if nested:
        return term, nested, ""
    return "", stack.blocks, term


def _single(stack: Layers, term: str, index: int, blocks: Sequence[Layer], tower: str) -> Layer:
    if not -len(blocks) <= index < len(blocks):
        count = f"the blocks{_of(tower)} are numbered 0 to {len(blocks) - 1}" if blocks else "there are no blocks"
        raise _error(stack, term, f"is out of range: {count}", near=False)
    return blocks[index]


def _percent(stack: Layers, term: str) -> Sequence[Layer]:
    match = _PERCENT.fullmatch(term)
    share = Fraction(match[1]) if match else Fraction(0)
    if not 0 < share <= 100:
        raise _error(
            stack, term, "is malformed: expected a percentage above 0% and up to 100%, as in '75%'", near=False
        )
    found = _of_kind(stack, "embeddings")
    for blocks in stack.networks:
        # Nearest whole number of blocks; a half rounds down, so that no more is frozen than was asked for.
        chosen = blocks[: math.ceil(share * len(blocks) / 100 - Fraction(1, 2))]
        above = {block.height for block in blocks[len(chosen) :]}
        found += [block for block in chosen if block.height not in above]  # blocks that run side by side stay together
    if not found:
        raise _error(stack, term, f"selects nothing of {len(stack.blocks)} blocks", near=False)
    return found


def _glob(stack: Layers, term: str) -> set[int]:
    """Identities of the parameters that have a matching name."""
    found = set()
    for layer in stack:
        aliases = layer.aliases
        for name, parameter in layer.named_parameters():
            names = {n for full in (name, *aliases.get(name, ())) for n in (full, clean_name(full))}
            if any(fnmatch.fnmatchcase(n, term) for n in names):
                found.add(id(parameter))
    if not found:
        left_out = any(fnmatch.fnmatchcase(name, term) for name, _ in stack.unassigned)
        why = ": what it matches is in no group, so it is never frozen" if left_out else ": no parameter's name matches"
        raise _error(stack, term, "selects nothing" + why, near=not left_out, parameters=True)
    return found


def _selection(stack: Layers, layers: set[int], parameters: set[int]) -> Selection:
    whole = tuple(layer for layer in stack if layer.index in layers)
    chosen = tuple(p for layer in stack for p in layer.parameters() if layer.index in layers or id(p) in parameters)
    return Selection(whole, chosen, eval_modules(stack, layers, {id(p) for p in chosen}))


def _of(tower: str) -> str:
    return f" of {tower!r}" if tower else ""


def _error(stack: Layers, term: str, why: str, near: bool = True, parameters: bool = False) -> ValueError:
    names = [*stack.names, *stack.towers, "all", "embeddings", "head"]
    names += sorted(_module_names(stack))
    if parameters or "." in term:
        names += [name for layer in stack for name, _ in layer.named_parameters()]
    hint = suggest(term, names) if near and term.strip() else ""
    return ValueError(f"Layer selector {term!r} {why}.{hint} Layers: {abbreviate(stack)}.")
