"""The decision for one forward pass of a tower: pure functions from facts to an outcome with its reason.

The facts come in two records: :class:`CallFacts` is known before the prefix is identified, :class:`PrefixFacts` after
the samples were looked up. Gathering facts takes time, so the caller stops at a fact that decides by itself: all other
fields have defaults that do not decide. The records are named tuples because every forward pass builds them.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from lightning_freeze.cache.identity.unsupported import ELSEWHERE


class Outcome(str, Enum):
    """What happens in a forward pass of a tower."""

    #: The tower runs as if there were no cache.
    LEAVE_ALONE = "leave alone"
    #: The tower runs, and hidden states that are not stored yet are stored.
    RUN_AND_STORE = "run and store"
    #: The tower runs, and what it computes is compared with what is stored or with a pass that skips.
    RUN_AND_COMPARE = "run and compare"
    #: Two of the samples are compared, then the frozen prefix is skipped for all of them.
    CHECK_FEW_THEN_SKIP = "check two samples, then skip"
    #: The frozen prefix is skipped.
    SKIP = "skip"
    #: The first blocks of the frozen prefix are skipped, and the rest of it runs.
    SKIP_FROM_LOWER = "skip from a lower boundary"
    #: The cache is not used for the tower any more.
    SWITCH_OFF = "switch off"

    def __str__(self) -> str:
        return self.value


class Decision(NamedTuple):
    """An outcome and its reason; ``str`` gives both, as in ``"skip: all 8 samples were found"``.

    Attributes:
        outcome: What happens.
        reason: Why, in words.
    """

    outcome: Outcome
    reason: str

    def __str__(self) -> str:
        return f"{self.outcome.value}: {self.reason}"


class CallFacts(NamedTuple):
    """What is known of a call before its prefix is identified.

    Attributes:
        boundary: Number of blocks in the frozen prefix.
        is_outdated: Whether modules or parameters of the tower have been replaced.
        continues_generation: Whether the call continues from keys and values of an earlier one.
        has_observers: Whether hooks that observe all modules would notice that blocks are skipped.
        returns_keys: Whether the call asks for keys and values.
        is_empty: Whether the batch has no samples.
        has_gradient: Whether an input requires grad, so that something that trains feeds into the prefix.
        probes_padding: Whether a lower tower has made its output require grad in this step, to check its padding.
    """

    boundary: int
    is_outdated: bool = False
    continues_generation: bool = False
    has_observers: bool = False
    returns_keys: bool = False
    is_empty: bool = False
    has_gradient: bool = False
    probes_padding: bool = False


class PrefixFacts(NamedTuple):
    """What is known of a call and its prefix after the samples were looked up.

    Attributes:
        size: Number of samples in the batch.
        found: Number of samples that are stored.
        keeps_changing: Whether the frozen layers have changed in one step after the other.
        has_same_layout: Whether the same arguments as before have one entry for each sample.
        is_checked: Whether skipping this prefix was compared with running it.
        conditions_checked: Whether that was done in such modes, and with gradients if there are any now.
        independence_checked: Whether samples were seen not to depend on the rest of their batch.
        checks_padding: Whether the backward pass will show if anything reads the positions of padding.
        padding_dry_run: Whether skipping was compared with running for a batch without its padding.
        padding_unread: Whether a backward pass has shown that nothing reads the positions of padding.
        is_verified: Whether enough batches with hits were compared with what the prefix computes.
        is_recomputed: Whether a backward pass repeats an earlier forward pass (activation checkpointing).
        few_suffice: Whether two samples may be checked in place of the batch.
        has_lower: Whether hidden states are stored at a lower boundary.
        is_divisible: Whether the samples that are missing can be computed alone.
        mixing: What is computed across the samples of a batch, ``None`` if nothing is. If anything is, samples are
            found only in the same batch.
        changing: The name of what has changed in the frozen layers, empty if it is not known.
        recurs: Whether batches may come a second time.
        size_checked: Whether samples were compared in a batch of this size.
    """

    size: int
    found: int = 0
    keeps_changing: bool = False
    has_same_layout: bool = True
    is_checked: bool = True
    conditions_checked: bool = True
    independence_checked: bool = True
    checks_padding: bool = False
    padding_dry_run: bool = True
    padding_unread: bool = True
    is_verified: bool = True
    is_recomputed: bool = False
    few_suffice: bool = False
    has_lower: bool = False
    is_divisible: bool = True
    mixing: str | None = None
    changing: str = ""
    recurs: bool = True
    size_checked: bool = True

    @property
    def is_new(self) -> bool:
        """Whether the prefix has not been checked under the present conditions."""
        return not (self.is_checked and self.conditions_checked)

    @property
    def needs_check(self) -> bool:
        """Whether the prefix has to be checked before it is skipped."""
        return self.is_new or not (self.independence_checked or self.size == 1)

    @property
    def needs_dry_run(self) -> bool:
        """Whether a pass that runs has to be compared with one that skips."""
        return self.needs_check or (self.checks_padding and not self.padding_dry_run)


#: The fact that is false after an attempt at an outcome has failed.
_FAILED = {
    Outcome.CHECK_FEW_THEN_SKIP: {"few_suffice": False},
    Outcome.SKIP_FROM_LOWER: {"has_lower": False},
    Outcome.SKIP: {"is_divisible": False},
}


def decide_call(facts: CallFacts) -> Decision | None:
    """Decide what can be decided before the prefix is identified.

    Args:
        facts: What is known of the call.

    Returns:
        The decision, ``None`` if it depends on the prefix.
    """
    if facts.is_outdated:
        return _leave_alone("modules or parameters were replaced, so the tower is analysed again after this batch")
    if not facts.boundary:
        return _leave_alone("its first block, or something before it, trains")
    if facts.continues_generation:
        return _leave_alone("the call continues from keys and values of an earlier one")
    if facts.has_observers:
        return _leave_alone("hooks observe its layers, as profilers do")
    if facts.returns_keys:
        return _leave_alone("use_cache=True asks for keys and values")
    if facts.is_empty:
        return _leave_alone("the batch has no samples")
    if facts.has_gradient and facts.probes_padding:
        return _leave_alone("a lower tower is checked for padding in this step, so its output requires grad")
    if facts.has_gradient:
        reason = "something that trains, or is made to require grad, feeds into its frozen layers"
        return Decision(Outcome.SWITCH_OFF, reason)
    return None


def decide_prefix(facts: PrefixFacts) -> Decision:
    """Decide after the samples were looked up.

    Args:
        facts: What is known of the call and its prefix.
    """
    if facts.keeps_changing:
        what = f" ({facts.changing} does)" if facts.changing else ""
        return Decision(Outcome.SWITCH_OFF, f"its frozen layers change from one step to the next{what}")
    if not facts.recurs:
        return Decision(Outcome.SWITCH_OFF, f"{_mixes(facts.mixing)}, and no batch comes a second time")
    needs_check = facts.needs_check
    if not needs_check and not facts.has_same_layout:
        return _leave_alone("its inputs cannot be divided into samples as before")
    missing = facts.size - facts.found
    if facts.is_recomputed:
        # The repetition must compute the same as the first pass, or find it.
        if facts.is_new or missing:
            return _leave_alone("activation checkpointing repeats a pass that has not been stored")
        return Decision(Outcome.SKIP, _found_all(facts.size))
    if needs_check and facts.few_suffice:
        return Decision(Outcome.CHECK_FEW_THEN_SKIP, f"{_found_all(facts.size)}, and not checked yet in this run")
    if (why := _why_compare(facts)) is not None:
        return Decision(Outcome.RUN_AND_COMPARE, why)
    if not facts.found:
        found = f"none of the {facts.size} samples was found" if facts.size > 1 else "the sample was not found"
        if facts.mixing is not None:
            found = f"{found} in the same batch; {_mixes(facts.mixing)}"
        if facts.has_lower:
            return Decision(Outcome.SKIP_FROM_LOWER, f"{found} at this boundary, all were found at a lower one")
        return Decision(Outcome.RUN_AND_STORE, found)
    if not missing:
        return Decision(Outcome.SKIP, _found_all(facts.size))
    found = f"{facts.found} of {facts.size} samples were found"
    if not facts.is_divisible:
        return Decision(Outcome.RUN_AND_COMPARE, f"{found}, and the others cannot be computed alone")
    return Decision(Outcome.SKIP, f"{found}, and the others are computed alone")


#: What all ranks do in lockstep, in the order in which one rank's need overrules the decisions of the others.
_LOCKSTEP = (Outcome.SKIP, Outcome.RUN_AND_STORE, Outcome.RUN_AND_COMPARE, Outcome.LEAVE_ALONE, Outcome.SWITCH_OFF)
#: What a rank announces before its decision if the identity of its prefix has to be computed again.
IDENTIFY = len(_LOCKSTEP)


def announcement(decision: Decision) -> int:
    """Return the number by which a rank of a sharded run announces its decision; the highest of any rank counts.

    Args:
        decision: The decision of this rank.
    """
    return _LOCKSTEP.index(decision.outcome)


def in_lockstep(decision: Decision, highest: int) -> Decision:
    """Return what this rank does, given the highest announcement of any rank.

    Args:
        decision: The decision of this rank.
        highest: The highest number that any rank has announced, not :data:`IDENTIFY`.
    """
    outcome = _LOCKSTEP[highest]
    return decision if outcome is decision.outcome else Decision(outcome, f"{ELSEWHERE} needs it ({decision.reason})")


def without_own_passes(facts: PrefixFacts) -> PrefixFacts:
    """Return the facts for a rank that cannot run a part of the prefix alone, because the others would have to run it.

    Args:
        facts: What is known of the call and its prefix.
    """
    return facts._replace(is_divisible=False, has_lower=False, few_suffice=False)


def after_failure(facts: PrefixFacts, outcome: Outcome) -> PrefixFacts:
    """Return the facts after an attempt at an outcome has failed; decided again, they give another outcome.

    Args:
        facts: The facts that led to the attempt.
        outcome: What was attempted.
    """
    return facts._replace(**_FAILED[outcome])  # type: ignore[arg-type]


def _why_compare(facts: PrefixFacts) -> str | None:
    if not facts.is_checked:
        what = f", since {facts.changing} has changed" if facts.changing else ""
        return f"these frozen layers have not been checked yet{what}"
    if not facts.conditions_checked:
        return "these frozen layers have not been checked yet in these modes, or with gradients"
    if facts.needs_check:
        return "it has not been checked yet whether samples depend on the rest of their batch"
    if facts.checks_padding and not (facts.padding_dry_run and facts.padding_unread):
        return "it has not been checked yet whether anything reads the positions of padding"
    if facts.found and not facts.is_verified:
        return f"{facts.found} of {facts.size} samples were found, and are compared with what the layers compute"
    if facts.found and not facts.size_checked:
        return f"no batch of {facts.size} samples has been compared yet"
    return None


def _leave_alone(reason: str) -> Decision:
    return Decision(Outcome.LEAVE_ALONE, reason)


def _mixes(mixing: str | None) -> str:
    return f"its frozen layers compute across the samples of a batch ({mixing})"


def _found_all(size: int) -> str:
    return f"all {size} samples were found" if size > 1 else "the sample was found"
