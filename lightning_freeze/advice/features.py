"""One pass of the frozen encoder: the features of each example at every depth."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_freeze.advice.measures.probes import Target
from lightning_freeze.cache.identity.cached_towers import find_towers
from lightning_freeze.errors import ConfigurationError
from lightning_freeze.layers import LayerStack
from lightning_freeze.module.batch import unpack
from lightning_freeze.module.pooling import pool
from lightning_freeze.module.tasks import IGNORE_INDEX

# Labels of tokens that count in one example: more of them add cost, and hardly any information.
_TOKENS = 8


@dataclass(frozen=True)
class Sample:
    """Features and targets of some examples, or of some of their tokens.

    Attributes:
        target: What the targets are.
        targets: ``(examples,)``, or ``(examples, labels)`` for several labels.
        features: By depth, from the input up, ``(examples, size)``. ``"embeddings"`` is the input of the first block,
            any other name the output of that block. Hidden states are averaged over the tokens.
    """

    target: Target
    targets: Tensor
    features: Mapping[str, Tensor]


@dataclass(frozen=True)
class _Labels:
    """The labels of one batch, and where they stand.

    Attributes:
        target: What they are.
        values: One row for each feature vector.
        positions: Example and token of each, for labels of tokens.
    """

    target: Target
    values: Tensor
    positions: tuple[Tensor, Tensor] | None = None


def collect_sample(
    stack: LayerStack, batches: Iterable[Any], run: Callable[[Any], object], task: str | None, examples: int
) -> Sample:
    """Run batches without gradients, and record the output of each block.

    Args:
        stack: The layers of the module that runs.
        batches: Batches with labels.
        run: Runs the module on a batch.
        task: What one label is (``Task.target``); by default told from the labels.
        examples: After how many examples to stop.

    Raises:
        ConfigurationError: If the labels are of no kind that a probe can predict, or there are no blocks to look at.
    """
    rows: dict[str, list[Tensor]] = {}
    labels: list[_Labels] = []
    seen = 0
    with _Recorder(stack) as hidden, torch.no_grad():
        for batch in batches:
            hidden.clear()
            run(batch)
            found = _labels_of(batch, task)
            labels.append(found)
            mask = _mask_of(batch)
            size = len(found.values) if found.positions is None else int(_size_of(batch))
            for name, states in hidden.items():
                rows.setdefault(name, []).append(_vectors(states, mask, size, found.positions).cpu())
            seen += size
            if seen >= examples:
                break
    if not rows or not labels:
        raise ConfigurationError("No block has run: expected training data, and a module whose blocks can be found.")
    targets = torch.cat([each.values for each in labels]).cpu()
    features = {name: torch.cat(parts) for name, parts in rows.items()}
    # Blocks whose hidden states have no row for each example tell nothing about one.
    features = {name: vectors for name, vectors in features.items() if len(vectors) == len(targets)}
    return Sample(labels[0].target, targets, features)


class _Recorder(ExitStack):
    """Within the context, the dict that it yields holds the hidden states of the latest pass by depth."""

    def __init__(self, stack: LayerStack) -> None:
        super().__init__()
        self._hidden: dict[str, Tensor] = {}
        for tower in find_towers(stack)[0]:
            layers = [layer for layer in stack if layer.is_block and layer.tower == tower.name]
            if any(layer.is_bystander for layer in layers) or len(layers) != len(tower.blocks):
                continue
            prefix = f"{tower.name}." if tower.name else ""
            first = partial(self._enter, f"{prefix}embeddings")
            self.callback(tower.blocks[0].register_forward_pre_hook(first, with_kwargs=True).remove)
            for layer, block in zip(layers, tower.blocks, strict=True):
                self.callback(block.register_forward_hook(partial(self._leave, layer.name)).remove)

    def __enter__(self) -> dict[str, Tensor]:  # type: ignore[override]
        super().__enter__()
        return self._hidden

    def _enter(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._keep(name, [*args, *kwargs.values()])

    def _leave(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        parts = list(output.values()) if isinstance(output, Mapping) else output
        self._keep(name, parts if isinstance(parts, list | tuple) else [parts])

    def _keep(self, name: str, values: Iterable[Any]) -> None:
        states = next((v for v in values if isinstance(v, Tensor) and v.is_floating_point() and v.ndim >= 2), None)
        if states is not None:
            self._hidden[name] = states.detach()


def _vectors(hidden: Tensor, mask: Tensor | None, size: int, positions: tuple[Tensor, Tensor] | None) -> Tensor:
    """Hidden states of a batch as one vector for each label."""
    if hidden.ndim == 3 and hidden.shape[0] != size and hidden.shape[1] == size:
        hidden = hidden.transpose(0, 1)  # (sequence, batch, hidden)
    if positions is not None:
        return hidden[positions[0].to(hidden.device), positions[1].to(hidden.device)].float()
    if hidden.ndim > 3:  # (batch, channels, height, width)
        return hidden.flatten(2).mean(2).float()
    return pool(hidden, mask, "mean").float() if hidden.ndim == 3 else hidden.float()


def _mask_of(batch: Any) -> Tensor | None:
    source = batch[0] if isinstance(batch, tuple | list) and batch else batch
    mask = source.get("attention_mask") if isinstance(source, Mapping) else None
    return mask if isinstance(mask, Tensor) and mask.ndim == 2 else None


def _size_of(batch: Any) -> int:
    inputs, labels = unpack(batch)
    return len(labels) if labels is not None else len(next(iter(inputs.values())))


def _labels_of(batch: Any, task: str | None) -> _Labels:
    labels = unpack(batch)[1]
    if not isinstance(labels, Tensor):
        raise ConfigurationError("The batches have no labels: expected the key 'labels', or pairs (inputs, labels).")
    kind = task or _kind_of(labels)
    if kind == "token":
        return _token_labels(labels)
    if kind == "class" and labels.ndim == 1:
        return _Labels("class", labels)
    if kind == "multilabel" and labels.ndim == 2:
        return _Labels("multilabel", labels)
    if kind == "value" and labels.numel() == len(labels):
        return _Labels("value", labels.reshape(-1))
    raise ConfigurationError(
        f"Probes cannot predict labels of the shape {tuple(labels.shape)} ({kind}): expected classes, numbers, zeros "
        "and ones, or a class for each token."
    )


def _kind_of(labels: Tensor) -> str:
    if labels.is_floating_point():
        return "multilabel" if labels.ndim == 2 and labels.shape[1] > 1 and _is_binary(labels) else "value"
    return "class" if labels.ndim == 1 else "multilabel" if _is_binary(labels) else "token"


def _is_binary(labels: Tensor) -> bool:
    return bool(((labels == 0) | (labels == 1)).all())


def _token_labels(labels: Tensor) -> _Labels:
    """The labels of some tokens of each example, spread over its length."""
    rows, columns = [], []
    for row, counted in enumerate(labels != IGNORE_INDEX):
        places = counted.nonzero().flatten()
        if len(places) > _TOKENS:
            places = places[torch.linspace(0, len(places) - 1, _TOKENS).long().to(places.device)]
        rows.append(torch.full_like(places, row))
        columns.append(places)
    positions = torch.cat(rows), torch.cat(columns)
    return _Labels("class", labels[positions], positions)
