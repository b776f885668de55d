"""The text of the warning of a wasted backward pass, with the way to fix it."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_freeze.layers import LayerStack
from lightning_freeze.layers.analysis.backward_extent import Leak
from lightning_freeze.layers.wording import spans
from lightning_freeze.session.session import Member, Session

_NO_GROUP = "What trains there is in no group: give it one of its own, the first, so that it can be frozen too."


class WastedBackwardMessage:
    """Describes the layers that one callback leaves trainable below frozen blocks.

    Args:
        member: The callback that freezes.
        session: The running fit.
    """

    def __init__(self, member: Member, session: Session) -> None:
        self._member = member
        self._session = session
        self._stack = member.stack
        self._plan = member.schedule.plan if member.schedule is not None else []

    def text(self, leak: Leak, number: int | None) -> str:
        """The warning.

        Args:
            leak: What backward runs through.
            number: Index of the phase, ``None`` without a schedule.
        """
        return self._without_schedule(leak) if number is None else self._in_phase(number, leak)

    @staticmethod
    def more_phases(numbers: Sequence[int]) -> str:
        """A sentence that the same holds for other phases; empty if there are none."""
        return f" The same holds for {_list('phase', numbers)}." if numbers else ""

    def _without_schedule(self, leak: Leak) -> str:
        name = type(self._member).__name__
        selector = str(getattr(self._member, "layers", ""))
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

    def _in_phase(self, number: int, leak: Leak) -> str:
        phase = self._plan[number]
        who = f"Phase {number + 1} of {len(self._plan)} of {type(self._member).__name__} (train={phase.train!r})"
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
        """The layers that should not train; the parameters, if it is only a part of a layer."""
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


def _within(stack: LayerStack, term: str, fix: str) -> bool:
    """Whether another selector selects everything that a term does."""
    inside = {id(p) for p in stack.select(fix).parameters}
    return all(id(p) in inside for p in stack.select(term).parameters)


def _join(stack: LayerStack, fix: str, selector: str) -> str:
    """A selector of everything that either of two selects, without redundant terms."""
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
