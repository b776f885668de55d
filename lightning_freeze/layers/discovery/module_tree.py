"""The module tree, read once: each module, its children, and the number of weights below it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torchmetrics import Metric, MetricCollection

from lightning_freeze.layers.forward_source.value_flow.flow import ValueFlow
from lightning_freeze.layers.forward_source.value_flow.interpreter import value_flow

#: Path components that wrappers add; they are not part of the model.
WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})

#: Packages of modules whose quantised weights are not parameters, and that do not pass gradients on.
QUANTISED = ("torch.ao.nn.quantized.", "torch.ao.nn.intrinsic.quantized.")

_EMBEDDING_WORDS = frozenset({"embed", "embeds", "embedding", "embeddings", "wte", "wpe", "stem", "patch", "embedder"})
_HEAD_WORDS = frozenset({"head", "heads", "classifier", "cls", "pooler", "score", "logits", "criterion", "loss"})
_HEAD_NAMES = frozenset({"fc", "logit_scale", "logit_bias", "fc_out", "qa_outputs"})


@dataclass(eq=False)
class Node:
    """One module of the tree; a module that is registered twice appears only where it was registered first.

    Attributes:
        name: Full dotted name in the root module, ``""`` for the root.
        key: Last component of the name.
        module: The module itself.
        parent: The node above, ``None`` for the root.
        children: Nodes below, in registration order.
        own: Names of the parameters that the module holds directly, in registration order.
        shared: Attribute names of modules that were registered earlier elsewhere, to their nodes.
        weights: Number of tensors with two or more dimensions in the module and below; a quantised module that keeps
            its weight in packed form or in a buffer counts as one.
        parameters: Number of parameters of any shape in the module and below, packed weights included.
        normalizes: Whether the module or one below it is a normalisation layer.
    """

    name: str
    key: str
    module: nn.Module
    parent: Node | None
    children: list[Node] = field(default_factory=list)
    own: list[str] = field(default_factory=list)
    shared: dict[str, Node] = field(default_factory=dict)
    weights: int = 0
    parameters: int = 0
    normalizes: bool = False

    @cached_property
    def flow(self) -> ValueFlow:
        """Which parts of the module feed which, as its code tells."""
        return value_flow(self.module)

    @property
    def is_list(self) -> bool:
        """Whether the module only holds others, in order."""
        return isinstance(self.module, nn.ModuleList | nn.Sequential | nn.ModuleDict)

    @property
    def class_name(self) -> str:
        """Name of the module's class."""
        return type(self.module).__name__

    @property
    def has_embedding(self) -> bool:
        """Whether an ``nn.Embedding`` stands here or below."""
        return any(isinstance(node.module, nn.Embedding) for node in self.walk())

    def walk(self) -> Iterator[Node]:
        """The node and all nodes below it, parents first."""
        yield self
        for child in self.children:
            yield from child.walk()

    def below(self, other: Node) -> bool:
        """Whether this node is ``other`` or stands below it."""
        node: Node | None = self
        while node is not None:
            if node is other:
                return True
            node = node.parent
        return False


def build_tree(root: nn.Module) -> Node:
    """Read the tree of ``root`` without touching any data.

    Args:
        root: Any module; parameters may be on the meta device or not initialised yet.

    Returns:
        The node of ``root``.
    """
    return _build(root, "", "", None, {})


def _build(module: nn.Module, name: str, key: str, parent: Node | None, seen: dict[int, Node]) -> Node:
    node = seen[id(module)] = Node(name, key, module, parent)
    if isinstance(module, Metric | MetricCollection):
        return node  # the modules of a metric are not trained
    for own, parameter in module._parameters.items():
        if parameter is not None:
            node.own.append(own)
            node.weights += _is_weight(parameter)
    node.parameters = len(node.own) + _is_packed(module)
    node.weights += _is_packed(module)
    node.normalizes = "norm" in node.class_name.lower()
    for child_key, child in module._modules.items():
        if child is not None and id(child) in seen:
            node.shared[child_key] = seen[id(child)]
        elif child is not None:
            below = _build(child, f"{name}.{child_key}" if name else child_key, child_key, node, seen)
            node.children.append(below)
            node.weights += below.weights
            node.parameters += below.parameters
            node.normalizes = node.normalizes or below.normalizes
    return node


def _is_weight(parameter: torch.Tensor) -> bool:
    return is_lazy(parameter) or parameter.dim() >= 2


def _is_packed(module: nn.Module) -> bool:
    """Whether a quantised module holds a weight that is not a parameter; it still counts as a weight."""
    if type(module).__module__.startswith(QUANTISED) and callable(getattr(type(module), "weight", None)):
        return True
    buffers = module._buffers.items()
    return any("weight" in n and b is not None and b.dim() >= 2 and not b.is_floating_point() for n, b in buffers)


def clean_name(name: str) -> str:
    """A full name without the components that ``torch.compile`` and other wrappers add."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def words_of(key: str) -> set[str]:
    """The lower-case words of an attribute name, ``"LmHead2"`` and ``"lm_head"`` alike."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", key)
    return {word for word in re.split(r"[_\W\d]+", spaced.lower()) if word}


def names_embedding(key: str) -> bool:
    """Whether an attribute name says that it turns inputs into vectors."""
    return bool(words_of(key) & _EMBEDDING_WORDS) or key in {"cls_token", "pos_emb", "mask_token"}


def names_head(key: str) -> bool:
    """Whether an attribute name says that the module follows the blocks."""
    return key in _HEAD_NAMES or (bool(words_of(key) & _HEAD_WORDS) and "token" not in words_of(key))


def only_embeds(node: Node) -> bool:
    """Whether a module holds only embedding tables: one, or one for each categorical column."""
    tables = [n for n in node.walk() if isinstance(n.module, nn.Embedding | nn.EmbeddingBag)]
    return bool(tables) and sum(table.parameters for table in tables) == node.parameters
