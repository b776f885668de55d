"""Whether freezing saves what it should: names, once in a fit, frozen blocks that backward still runs through.

Only what is most likely a mistake is warned of: frozen blocks below which nothing trains but embeddings, so that
freezing those as well lets backward stop. A trainable block below frozen ones, biases or adapters all through the
model, a phase that names the embeddings among a few layers: these cost the same, but somebody has asked for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch.nn import Embedding, Parameter

from lightning_freeze.compatibility.compile import is_compiled
from lightning_freeze.diagnostics.backward_watch import BackwardWatch
from lightning_freeze.layers.analysis.backward_extent import IN_TRAIN_MODE, Leak, backward_leaks
from lightning_freeze.layers.discovery.module_tree import names_embedding
from lightning_freeze.layers.wording import spans

if TYPE_CHECKING:
    from lightning_freeze.callbacks.base import FreezingCallback
    from lightning_freeze.layers import LayerStack
    from lightning_freeze.session.session import Session

Trains = Callable[[Parameter], bool]

_NO_GROUP = "What trains there is in no group: give it one of its own, the first, so that it can be frozen too."


class SavingCheck:
    """Looks at the phases to come by their structure, and at the first batch of each by what really requires grad.

    Args:
        callback: The callback that freezes.
        session: The running fit.
    """

    def __init__(self, callback: FreezingCallback, session: Session) -> None:
        self._callback = callback
        self._session = session
        self._stack = callback.stack
        self._plan: list[Any] = getattr(callback, "plan", [])
        self._freezes = [set(parameters) for parameters, _ in getattr(callback, "freezes", [])]
        self._watch: BackwardWatch | None = None
        self._phase = -1
        self._is_done = False
        session.at_close(self.close)

    def look_ahead(self) -> None:
        """Warn of the phases, from the running one on, for which the structure alone is proof."""
        wrong: list[int] = []
        first: Leak | None = None
        # Strategies that flatten parameters after the fact show others than those that the schedule was made for.
        if not set().union(*self._freezes) <= set(self._parameters()):
            return
        for number in range(getattr(self._callback, "phase", 0), len(self._plan)):
            trains = self._trains_in(number)
            if self._can_leak(trains):
                leaks = backward_leaks(self._stack, [p for p in self._parameters() if trains(p)])
                leak = self._mistake([leak for leak in leaks if leak.is_certain], trains, number)
                if leak is not None:
                    wrong.append(number)
                    first = first or leak
        if first is not None:
            more = f" The same holds for {_list('phase', wrong[1:])}." if wrong[1:] else ""
            self._warn(self._phase_message(wrong[0], first) + more)

    def begin_batch(self) -> None:
        """A training batch begins; watch its forward pass if other layers train than in the one before."""
        phase = getattr(self._callback, "phase", 0)
        if self._is_done or phase == self._phase:
            return
        self.close()
        self._phase = phase
        trains = _requires_grad
        expected = None
        if self._can_leak(trains):
            leaks = backward_leaks(self._stack)
            expected = self._mistake([leak for leak in leaks if leak.is_certain], trains, self._number())
        if not is_compiled(self._session.module):  # hooks would break its graphs
            self._watch = BackwardWatch(self._stack, lambda name: self._confirm(name, expected))
        elif expected is not None:
            self._warn(self._message(expected))

    def end_forward(self) -> None:
        """The forward pass is over: warn of what structure could not know."""
        watch, self._watch = self._watch, None
        if watch is None:
            return
        leak = self._mistake(watch.close(), _requires_grad, self._number())
        if leak is not None and not self._is_done:
            self._warn(self._message(leak))

    def close(self) -> None:
        """Stop watching."""
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def _confirm(self, name: str, expected: Leak | None) -> None:
        # Said at once and not after the batch: where backward runs further than it should, memory may not suffice.
        if expected is not None and name in expected.layers and not self._is_done:
            self._warn(self._message(expected))

    def _warn(self, message: str) -> None:
        self._is_done = True
        if self._session.first("saving"):
            rank_zero_warn(message)

    def _number(self) -> int | None:
        return self._phase if self._plan else None

    def _parameters(self) -> Iterable[Parameter]:
        return (parameter for layer in self._stack for parameter in layer.parameters())

    def _trains_in(self, number: int) -> Trains:
        """Whether a parameter trains in a phase, as far as is known now of what other callbacks freeze."""
        frozen = self._freezes[number]
        holds = self._session.holds

        def trains(parameter: Parameter) -> bool:
            others = [holder for holder in holds.holders(parameter) if holder is not self._callback]
            return parameter not in frozen and holds.given(parameter) and not others

        return trains

    def _can_leak(self, trains: Trains) -> bool:
        """Whether any stem trains and any block is frozen: without that there is no mistake to look for."""
        stems = [layer for layer in self._stack if self._is_stem(layer.name)]
        blocks = [layer for layer in self._stack.blocks if layer.parameters()]
        some = any(trains(p) for layer in stems for p in layer.parameters())
        return some and any(not any(map(trains, layer.parameters())) for layer in blocks)

    def _mistake(self, leaks: Sequence[Leak], trains: Trains, number: int | None) -> Leak | None:
        """What is a mistake, as one."""
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
        if not all(self._is_stem(name) for name in leak.sources):
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
        holds = self._session.holds
        held = self._callback in holds.holders(parameter) or any(parameter in frozen for frozen in self._freezes)
        return held and holds.given(parameter)

    def _is_stem(self, name: str) -> bool:
        layer = self._stack[name]
        return layer.kind == "embeddings" or (layer.kind == "group" and layer.index == 0 and names_embedding(name))

    def _is_avoidable(self, leak: Leak) -> bool:
        # `enable_input_require_grads()` is dealt with where checkpointing is; an input of the user's own is meant so.
        return not getattr(self._callback, "frozen_eval", True) and leak.reason.endswith(IN_TRAIN_MODE)

    def _message(self, leak: Leak) -> str:
        return self._static_message(leak) if self._number() is None else self._phase_message(self._phase, leak)

    def _static_message(self, leak: Leak) -> str:
        name = type(self._callback).__name__
        selector = str(getattr(self._callback, "layers", ""))
        who = f"{name}({selector!r})"
        if not leak.parameters:
            return (
                f"{who}: {leak.reason}, so {_through(leak, self._stack)} although frozen, and most of the saving is "
                f"lost. Leave out frozen_eval=False."
            )
        text = f"{who} leaves {self._what(leak)} trainable below {_lost(leak)}"
        if not leak.sources:
            return f"{text} {_NO_GROUP}"
        fix = f"{name}({_join(self._stack, leak.fix, selector)!r})"
        return f"{text} Freeze {self._them(leak)} too: {fix}.{self._tied(leak)}"

    def _phase_message(self, number: int, leak: Leak) -> str:
        phase = self._plan[number]
        who = f"Phase {number + 1} of {len(self._plan)} of {type(self._callback).__name__} (train={phase.train!r})"
        if not leak.parameters:
            return (
                f"{who}: {leak.reason}, so {_through(leak, self._stack)} although frozen, and most of the saving is "
                f"lost. Leave out frozen_eval=False."
            )
        fix = self._phase_fix(phase.train, leak)
        return f"{who} trains {self._what(leak)} below {_lost(leak)} {fix}{self._tied(leak)}"

    def _phase_fix(self, selector: str, leak: Leak) -> str:
        if not leak.sources:
            return _NO_GROUP
        parameters = [p for name in leak.layers for p in self._stack[name].parameters()]
        for holder in self._session.holds.holders(parameters[0]):
            static = getattr(holder, "layers", None)
            if isinstance(static, str):
                fixed = _join(self._stack, leak.fix, static)
                return f"Freeze {self._them(leak)} too: {type(holder).__name__}({fixed!r})."
        terms = [term.strip() for term in selector.split(",")]
        kept = [term for term in terms if not _within(self._stack, term, leak.fix)]
        if kept and kept != terms:
            return f"Leave {self._them(leak)} out: train={','.join(kept)!r}."
        return f"Leave {self._them(leak)} out of it."

    def _what(self, leak: Leak) -> str:
        """The layers that train where they should not; the parameters, where it is some of a layer only."""
        if self._trains_whole(leak):
            return " and ".join(leak.sources)
        if len(leak.parameters) == 1:
            return leak.parameters[0]
        return f"{len(leak.parameters)} parameters (such as {leak.parameters[0]})"

    def _trains_whole(self, leak: Leak) -> bool:
        owned = [name for source in leak.sources for name, _ in self._stack[source].named_parameters()]
        return bool(owned) and set(owned) <= set(leak.parameters)

    def _them(self, leak: Leak) -> str:
        one = leak.sources if self._trains_whole(leak) else leak.parameters
        return "it" if len(one) == 1 and not one[0].endswith("embeddings") else "them"

    def _tied(self, leak: Leak) -> str:
        shared = [tie for tie in self._stack.ties if tie.name in leak.parameters and tie.used_by not in leak.layers]
        shared = [tie for tie in shared if self._stack[tie.used_by].kind == "head"]
        return f" {shared[0].alias} is the same weight, and then frozen with it." if shared else ""


def _requires_grad(parameter: Parameter) -> bool:
    return parameter.requires_grad


def _embeds(stack: LayerStack, name: str) -> bool:
    owner, _, key = name.rpartition(".")
    module = stack.module.get_submodule(owner)
    return isinstance(module, Embedding) or any(names_embedding(part) for part in [*owner.split("."), key])


def _within(stack: LayerStack, term: str, fix: str) -> bool:
    """Whether another selector selects everything that a term does."""
    inside = {id(p) for p in stack.select(fix).parameters}
    return all(id(p) in inside for p in stack.select(term).parameters)


def _join(stack: LayerStack, fix: str, selector: str) -> str:
    """A selector of what either of two selects, without terms that say nothing more."""
    terms = [term.strip() for term in selector.split(",")]
    return ",".join([fix, *(term for term in terms if not _within(stack, term, fix))])


def _lost(leak: Leak) -> str:
    count = len(leak.layers)
    blocks, them = ("block", "it") if count == 1 else ("blocks", "all of them")
    return f"{count} frozen {blocks}: backward still runs through {them}, and most of the saving is lost."


def _through(leak: Leak, stack: LayerStack) -> str:
    return f"backward runs through {spans(list(leak.layers), stack.names)}"


def _list(word: str, numbers: Sequence[int]) -> str:
    names = [str(number + 1) for number in numbers]
    text = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return f"{word}{'s' if len(names) > 1 else ''} {text}"
