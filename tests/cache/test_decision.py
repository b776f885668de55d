"""The decision for one forward pass: a table of named cases, and invariants over all combinations of facts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import product

import pytest

from lightning_freeze.cache.decision import (
    CallFacts,
    Decision,
    Outcome,
    PrefixFacts,
    after_failure,
    decide_call,
    decide_prefix,
)

SKIPS = (Outcome.SKIP, Outcome.SKIP_FROM_LOWER)
RUNS = (Outcome.RUN_AND_STORE, Outcome.RUN_AND_COMPARE)

CALLS = {
    "ordinary": (CallFacts(3), None),
    "replaced modules": (CallFacts(3, is_outdated=True), "leave alone: modules or parameters were replaced"),
    "nothing frozen": (CallFacts(0), "leave alone: its first block, or something before it, trains"),
    "generation": (CallFacts(3, continues_generation=True), "leave alone: the call continues from keys and values"),
    "profiler": (CallFacts(3, has_observers=True), "leave alone: hooks observe its layers"),
    "use_cache": (CallFacts(3, returns_keys=True), "leave alone: use_cache=True asks for keys and values"),
    "empty batch": (CallFacts(3, is_empty=True), "leave alone: the batch has no samples"),
    "soft prompt": (CallFacts(3, has_gradient=True), "switch off: something that trains, or is made to require grad"),
    "probed": (CallFacts(3, has_gradient=True, probes_padding=True), "leave alone: a lower tower is checked"),
    "probed elsewhere": (CallFacts(3, probes_padding=True), None),
    "empty with gradient": (CallFacts(3, is_empty=True, has_gradient=True), "leave alone: the batch has no samples"),
}

PREFIXES = {
    "all found": (PrefixFacts(8, 8), "skip: all 8 samples were found"),
    "one sample": (PrefixFacts(1, 1), "skip: the sample was found"),
    "some found": (PrefixFacts(8, 5), "skip: 5 of 8 samples were found, and the others are computed alone"),
    "indivisible": (
        PrefixFacts(8, 5, is_divisible=False),
        "run and compare: 5 of 8 samples were found, and the others",
    ),
    "none found": (PrefixFacts(8), "run and store: none of the 8 samples was found"),
    "one missing": (PrefixFacts(1), "run and store: the sample was not found"),
    "lower": (PrefixFacts(8, has_lower=True), "skip from a lower boundary: none of the 8 samples was found at this"),
    "first pass": (PrefixFacts(8, is_checked=False), "run and compare: these frozen layers have not been checked yet"),
    "warm start": (
        PrefixFacts(8, 8, is_checked=False, few_suffice=True),
        "check two samples, then skip: all 8 samples",
    ),
    "warm, whole batch": (PrefixFacts(8, 8, is_checked=False), "run and compare: these frozen layers have not been"),
    "new mode": (PrefixFacts(8, 8, conditions_checked=False), "run and compare: .* in these modes, or with gradients"),
    "single before": (PrefixFacts(8, 8, independence_checked=False), "run and compare: .* depend on the rest of their"),
    "single again": (PrefixFacts(1, 1, independence_checked=False), "skip: the sample was found"),
    "to be verified": (PrefixFacts(8, 8, is_verified=False), "run and compare: 8 of 8 samples were found, and are"),
    "nothing to verify": (PrefixFacts(8, 0, is_verified=False), "run and store: none of the 8"),
    "first padding": (PrefixFacts(8, 8, checks_padding=True, padding_dry_run=False), "run and compare: .* padding"),
    "padding unknown": (PrefixFacts(8, 8, checks_padding=True, padding_unread=False), "run and compare: .* padding"),
    "padding known": (PrefixFacts(8, 8, checks_padding=True), "skip: all 8 samples were found"),
    "no padding here": (PrefixFacts(8, 8, padding_dry_run=False, padding_unread=False), "skip: all 8 samples"),
    "repeated": (PrefixFacts(8, 8, is_recomputed=True), "skip: all 8 samples were found"),
    "repeated, missing": (PrefixFacts(8, 7, is_recomputed=True), "leave alone: activation checkpointing repeats"),
    "repeated, new": (PrefixFacts(8, 8, is_recomputed=True, is_checked=False), "leave alone: activation checkpoint"),
    "sizes coincide": (PrefixFacts(8, 8, has_same_layout=False), "leave alone: its inputs cannot be divided"),
    "first layout": (PrefixFacts(8, 0, has_same_layout=False, is_checked=False), "run and compare: these frozen"),
    "momentum teacher": (PrefixFacts(8, 8, keeps_changing=True), "switch off: its frozen layers change from one step"),
    "changing": (PrefixFacts(8, 8, keeps_changing=True, changing="x.y"), r"switch off: .* to the next \(x.y does\)"),
    "mixing": (
        PrefixFacts(8, 0, mixing="f in g"),
        r"run and store: none .* in the same batch; its frozen .* \(f in g\)",
    ),
    "mixing, partly": (
        PrefixFacts(8, 5, mixing="f", is_divisible=False),
        "run and compare: .* cannot be computed alone",
    ),
    "mixing, shuffled": (PrefixFacts(8, 0, mixing="f", recurs=False), "switch off: .* no batch comes a second time"),
    "new size": (PrefixFacts(8, 8, size_checked=False), "run and compare: no batch of 8 samples has been compared yet"),
    "new size, missing": (PrefixFacts(8, 0, size_checked=False), "run and store: none of the 8 samples"),
}


@pytest.mark.parametrize("name", CALLS)
def test_call(name: str) -> None:
    facts, expected = CALLS[name]
    decision = decide_call(facts)
    if expected is None:
        assert decision is None
    else:
        assert decision is not None and str(decision).startswith(expected)


@pytest.mark.parametrize("name", PREFIXES)
def test_prefix(name: str) -> None:
    facts, expected = PREFIXES[name]
    assert re.match(expected, str(decide_prefix(facts))), str(decide_prefix(facts))


TEXTS = ("changing", "mixing")
FLAGS = [name for name in PrefixFacts._fields if name not in ("size", "found", "recurs", *TEXTS)]


def all_facts() -> Iterator[PrefixFacts]:
    """Every combination that can occur: two samples are checked only if all were found and no padding is left out."""
    for (size, found), values in product(
        [(1, 0), (1, 1), (8, 0), (8, 5), (8, 8)], product([False, True], repeat=len(FLAGS))
    ):
        facts = PrefixFacts(size, found, **dict(zip(FLAGS, values, strict=True)))
        if not facts.few_suffice or (found == size and size > 1 and not facts.checks_padding):
            yield facts


def test_invariants_of_a_call() -> None:
    flags = CallFacts._fields[1:]
    for boundary, values in product([0, 3], product([False, True], repeat=len(flags))):
        facts = CallFacts(boundary, **dict(zip(flags, values, strict=True)))
        decision = decide_call(facts)
        is_ordinary = boundary and not any(values[: flags.index("has_gradient") + 1])
        assert (decision is None) == bool(is_ordinary), facts
        if decision is not None:
            assert decision.outcome in (Outcome.LEAVE_ALONE, Outcome.SWITCH_OFF), facts
            is_last = facts.has_gradient and not facts.probes_padding
            assert decision.outcome is not Outcome.SWITCH_OFF or is_last, facts


def test_invariants_of_a_prefix() -> None:
    for facts in all_facts():
        decision = decide_prefix(facts)
        outcome = decision.outcome
        assert (outcome is Outcome.SWITCH_OFF) == facts.keeps_changing, facts
        if facts.keeps_changing:
            continue
        if outcome in SKIPS:
            # What has not been checked is never skipped, and what is not there cannot be.
            assert not facts.is_new, facts
            assert facts.independence_checked or facts.size == 1 or facts.is_recomputed, facts
            assert facts.found or (outcome is Outcome.SKIP_FROM_LOWER and facts.has_lower), facts
            if not facts.is_recomputed:
                assert (facts.is_verified and facts.size_checked) or not facts.found, facts
                assert not facts.checks_padding or (facts.padding_dry_run and facts.padding_unread), facts
                assert facts.has_same_layout, facts
        if outcome is Outcome.CHECK_FEW_THEN_SKIP:
            assert facts.few_suffice and facts.needs_check, facts
        if outcome is Outcome.LEAVE_ALONE:
            assert facts.is_recomputed or not facts.has_same_layout, facts
        if facts.is_recomputed:
            # The repetition of a pass must not compare or store anything that its first run did not.
            assert outcome in (Outcome.SKIP, Outcome.LEAVE_ALONE), facts
            assert outcome is Outcome.LEAVE_ALONE or facts.found == facts.size, facts
        if facts.needs_dry_run and outcome in RUNS:
            assert outcome is Outcome.RUN_AND_COMPARE, facts


def test_nothing_is_computed_without_need() -> None:
    for facts in all_facts():
        is_settled = not facts.needs_dry_run and facts.is_verified and facts.padding_unread and facts.has_same_layout
        is_settled = is_settled and facts.size_checked
        if is_settled and not facts.keeps_changing and facts.found == facts.size:
            assert decide_prefix(facts).outcome is Outcome.SKIP, facts


def test_failed_attempts_end_in_a_pass_that_runs() -> None:
    for facts in all_facts():
        decision, attempts = decide_prefix(facts), 0
        while decision.outcome in (*SKIPS, Outcome.CHECK_FEW_THEN_SKIP):
            if decision.outcome is Outcome.SKIP and facts.found == facts.size:
                break  # there is nothing in it that can fail
            facts = after_failure(facts, decision.outcome)
            attempts, decision = attempts + 1, decide_prefix(facts)
        assert attempts <= 2, facts


def test_reasons_are_phrases() -> None:
    for facts in all_facts():
        outcome, reason = decision = decide_prefix(facts)
        assert str(decision) == f"{outcome.value}: {reason}" == f"{outcome}: {reason}"
        assert reason and not reason.endswith(".") and reason[0] not in " :"


def test_outcomes_equal_their_names() -> None:
    assert Decision(Outcome.SKIP, "").outcome == "skip"
    assert [outcome.value for outcome in Outcome] == [
        "leave alone",
        "run and store",
        "run and compare",
        "check two samples, then skip",
        "skip",
        "skip from a lower boundary",
        "switch off",
    ]
