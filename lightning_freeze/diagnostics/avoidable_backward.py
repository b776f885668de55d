"""Frozen blocks that backward runs through by mistake, and not because something below them is meant to train.

Only likely mistakes count: frozen blocks below which nothing trains except embeddings, so that backward would stop if
the embeddings were frozen as well. A trainable block below frozen ones, biases or adapters throughout the model, and a
phase that names the embeddings among a few layers cost the same, but the user asked for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from torch.nn import Embedding, Parameter

from lightning_freeze.layers import LayerStack
from lightning_freeze.layers.analysis.backward_extent import IN_TRAIN_MODE, Leak, backward_leaks
from lightning_freeze.layers.discovery.module_tree import names_embedding
from lightning_freeze.session.session import Member, Session

Trains = Callable[[Parameter], bool]


class AvoidableBackward:
    """Finds, for the layers of one callback, what backward runs through by mistake.

    Args:
        member: The callback that freezes.
        session: The running fit.
    """

    def __init__(self, member: Member, session: Session) -> None:
        self._member = member
        self._holds = session.holds
        self._stack = member.stack
        freezes = member.schedule.freezes if member.schedule is not None else []
        self._frozen_in = [set(parameters) for parameters, _ in freezes]

    def covers_all(self) -> bool:
        """Whether the phases freeze the parameters that the layers have now; strategies may have replaced them."""
        return set().union(*self._frozen_in) <= set(self._parameters())

    def in_phase(self, number: int) -> Leak | None:
        """A mistake in a phase that is certain from the structure of the module.

        Args:
            number: Index of the phase.
        """
        return self._by_structure(self._trains_in(number), number, list(self._parameters()))

    def now(self, number: int | None) -> Leak | None:
        """A present mistake that is certain from the structure of the module.

        Args:
            number: Index of the running phase, ``None`` without a schedule.
        """
        return self._by_structure(_requires_grad, number, None)

    def among(self, leaks: Sequence[Leak], number: int | None) -> Leak | None:
        """A mistake among the leaks that were seen in a forward pass.

        Args:
            leaks: Frozen layers that backward will run through.
            number: Index of the running phase, ``None`` without a schedule.
        """
        return self._mistake(leaks, _requires_grad, number)

    def _by_structure(self, trains: Trains, number: int | None, parameters: list[Parameter] | None) -> Leak | None:
        if not self._can_leak(trains):
            return None
        trainable = None if parameters is None else [p for p in parameters if trains(p)]
        leaks = backward_leaks(self._stack, trainable)
        return self._mistake([leak for leak in leaks if leak.is_certain], trains, number)

    def _parameters(self) -> Iterable[Parameter]:
        return (parameter for layer in self._stack for parameter in layer.parameters())

    def _trains_in(self, number: int) -> Trains:
        """Whether a parameter trains in a phase, given what other callbacks freeze at present."""
        frozen, holds = self._frozen_in[number], self._holds

        def trains(parameter: Parameter) -> bool:
            others = [holder for holder in holds.holders(parameter) if holder is not self._member]
            return parameter not in frozen and holds.given(parameter) and not others

        return trains

    def _can_leak(self, trains: Trains) -> bool:
        """Whether any embeddings train and any block is frozen; otherwise no mistake is possible."""
        embeddings = [layer for layer in self._stack if self._is_embedding(layer.name)]
        blocks = [layer for layer in self._stack.blocks if layer.parameters()]
        some = any(trains(p) for layer in embeddings for p in layer.parameters())
        return some and any(not any(map(trains, layer.parameters())) for layer in blocks)

    def _mistake(self, leaks: Sequence[Leak], trains: Trains, number: int | None) -> Leak | None:
        """All mistakes as one leak."""
        found = [leak for leak in leaks if self._is_mistake(leak, trains, number)]
        if not found:
            return None
        names = {name for leak in found for name in leak.layers if self._stack[name].is_block}
        sources = tuple(dict.fromkeys(name for leak in found for name in leak.sources))
        parameters = tuple(dict.fromkeys(name for leak in found for name in leak.parameters))
        layers = tuple(layer.name for layer in self._stack if layer.name in names)
        fix = ",".join(dict.fromkeys(term for leak in found for term in leak.fix.split(",")))
        return Leak(layers, sources, parameters, fix, found[0].reason)

    def _is_mistake(self, leak: Leak, trains: Trains, number: int | None) -> bool:
        blocks = [self._stack[name] for name in leak.layers if self._stack[name].is_block]
        if not any(self._is_ours(p) for layer in blocks for p in layer.parameters()):
            return False
        if not leak.parameters:
            return bool(leak.reason) and self._is_avoidable(leak)
        if not all(self._is_embedding(name) for name in leak.sources):
            return False
        homeless = set(leak.parameters) & {name for name, _ in self._stack.unassigned}
        if any(not _embeds(self._stack, name) for name in homeless):
            return False
        others = [layer for layer in self._stack if layer.name not in (*leak.sources, *leak.layers)]
        training = [any(trains(p) for p in layer.parameters()) for layer in others if layer.parameters()]
        if number is None:
            return any(training)
        # A phase names what trains: it is a slip only if it is "all but the lowest blocks" in other words.
        return all(training) and any(layer.is_block for layer in others)

    def _is_ours(self, parameter: Parameter) -> bool:
        """Whether this callback freezes a parameter that would train without it."""
        holds = self._holds
        held = self._member in holds.holders(parameter) or any(parameter in frozen for frozen in self._frozen_in)
        return held and holds.given(parameter)

    def _is_embedding(self, name: str) -> bool:
        layer = self._stack[name]
        return layer.kind == "embeddings" or (layer.kind == "group" and layer.index == 0 and names_embedding(name))

    def _is_avoidable(self, leak: Leak) -> bool:
        # `enable_input_require_grads()` is handled with checkpointing; an input of the user requires grad on purpose.
        return not getattr(self._member, "frozen_eval", True) and leak.reason.endswith(IN_TRAIN_MODE)


def _requires_grad(parameter: Parameter) -> bool:
    return parameter.requires_grad


def _embeds(stack: LayerStack, name: str) -> bool:
    owner, _, key = name.rpartition(".")
    module = stack.module.get_submodule(owner)
    return isinstance(module, Embedding) or any(names_embedding(part) for part in [*owner.split("."), key])
